"""A study's folder: whose it is, what has become of each cell, and what the study has changed."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Sequence
from pathlib import Path

from pintern.config import differences
from pintern.errors import UserError
from pintern.files import write_atomically
from pintern.folders import check_folder
from pintern.locks import owner, try_lock
from pintern.studies.ledger import Ledger, Line
from pintern.studies.line import as_declared
from pintern.studies.study import Cell, Study, cells_of
from pintern.training.workdir import came_to_nothing, read_config, read_record


def folder_of(cell: Cell, workdir: Path) -> Path:
    """A cell's run folder."""
    return workdir / "cells" / cell.name


def claim_study(study: Study, workdir: Path) -> None:
    """Makes the folder this study's own.

    Raises:
      UserError: it holds another study, or something else.
    """
    check_study(study, workdir)
    path = workdir / "study.json"
    if path.exists():
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({"name": study.name}) + "\n")
    except OSError as error:
        raise UserError(f"--workdir={workdir} can't be written: {error.strerror}.") from error


def check_study(study: Study, workdir: Path) -> None:
    """Refuses a folder that holds another study, or something else."""
    check_folder(workdir, "study.json", "study")
    path = workdir / "study.json"
    if not path.exists():
        return
    name = read_record(path, "name")["name"]
    if name != study.name:
        raise UserError(
            f"{workdir} holds the study {name!r}, not {study.name!r}.", "Use another --workdir."
        )


def states(study: Study, workdir: Path) -> dict[str, str]:
    """Cell to what has become of it: `done`, `changed`, `running (<pid> on <host>)`, `begun`,
    `new`.

    Raises:
      UserError: the folder isn't this study's.
    """
    check_study(study, workdir)
    lines = Ledger(workdir).lines()
    return {cell.name: _state(cell, workdir, lines) for cell in cells_of(study)}


def select(cells: Sequence[Cell], patterns: Sequence[str]) -> list[Cell]:
    """Cells whose name matches one of the patterns (`*/nano/direct*/seed-0`); none is all.

    Raises:
      UserError: a pattern that matches no cell.
    """
    for pattern in patterns:
        if not fnmatch.filter([cell.name for cell in cells], pattern):
            raise UserError(
                f"No cell matches {pattern!r}.",
                f"Cells are named like {cells[0].name}; --list shows all.",
            )
    return [cell for cell in cells if not patterns or matches(cell.name, patterns)]


def finished_lines(study: Study, workdir: Path) -> dict[str, tuple[Cell, Line]]:
    """Finished cells that are as the study has them now; changed ones are left out.

    Their lines have the study's present factors and prices, see `line.as_declared`.
    """
    lines = Ledger(workdir).lines()
    return {
        cell.name: (cell, as_declared(study, cell, lines[cell.name]))
        for cell in cells_of(study)
        if cell.name in lines and lines[cell.name]["fingerprint"] == cell.fingerprint
    }


def set_aside(cells: Sequence[Cell], workdir: Path, ledger: Ledger, redo: Sequence[str]) -> None:
    """Takes changed cells that `redo` names out of the ledger, and their folders to `replaced/`.

    A folder whose own configuration is still right, since only measures differ, stays. A cell of
    which nothing came, as it failed and the study was mended since, needn't be named.

    Raises:
      UserError: changed cells that `redo` doesn't name.
    """
    lines = ledger.lines()
    changed = [
        cell
        for cell in cells
        if _changed(cell, workdir, lines) and not owner(lock_of(cell, workdir))
    ]
    kept = [c for c in changed if _has_results(c, workdir, lines) and not matches(c.name, redo)]
    if kept:
        raise UserError(
            f"{len(kept)} cells were run with another configuration than the study has now: "
            f"{'; '.join(_what_changed(cell, workdir, lines) for cell in kept[:3])}.",
            "Old and new results are never mixed. Run them anew by --redo=PATTERN (old folders go "
            "to replaced/), leave them out by --only, or use another --workdir.",
        )
    for cell in changed:
        with try_lock(lock_of(cell, workdir)) as mine:
            if not mine or not _changed(cell, workdir, ledger.lines()):
                continue  # another process is redoing it
            folder = folder_of(cell, workdir)
            if _config_changed(cell, workdir):
                place = workdir / "replaced" / cell.name
                place.mkdir(parents=True, exist_ok=True)
                folder.rename(place / str(1 + sum(1 for _ in place.iterdir())))
            ledger.drop(cell.name)


def _state(cell: Cell, workdir: Path, lines: dict[str, Line]) -> str:
    changed = _changed(cell, workdir, lines)
    if cell.name in lines:
        return "changed" if changed else "done"
    who = owner(lock_of(cell, workdir))
    if who:
        return f"running ({who})"
    if changed:
        return "changed" if _has_results(cell, workdir, lines) else "new"
    return "begun" if folder_of(cell, workdir).exists() else "new"


def _changed(cell: Cell, workdir: Path, lines: dict[str, Line]) -> bool:
    """Whether the study has changed since the cell was run, or begun."""
    if cell.name in lines:
        return lines[cell.name]["fingerprint"] != cell.fingerprint
    return _config_changed(cell, workdir)


def _has_results(cell: Cell, workdir: Path, lines: dict[str, Line]) -> bool:
    return cell.name in lines or not came_to_nothing(folder_of(cell, workdir))


def _config_changed(cell: Cell, workdir: Path) -> bool:
    folder = folder_of(cell, workdir)
    if not (folder / "config.json").exists():
        return False
    return bool(differences(read_config(folder), cell.arm.config))


def _what_changed(cell: Cell, workdir: Path, lines: dict[str, Line]) -> str:
    folder = folder_of(cell, workdir)
    fields = []
    if (folder / "config.json").exists():
        fields = differences(read_config(folder), cell.arm.config)[:3]
    elif cell.name in lines:
        fields = ["its run folder is gone"]
    return f"{cell.name} ({', '.join(fields) or 'the inference prompt or the measures'})"


def lock_of(cell: Cell, workdir: Path) -> Path:
    """The file that whoever runs the cell has locked."""
    return workdir / "locks" / cell.name


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a cell's name matches any pattern."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
