"""Runs a study's cells, alone or beside other processes, and writes each down when it is done."""

from __future__ import annotations

import fnmatch
import json
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

from pintern.arms import Measured, StoppedError, run_arm
from pintern.config import differences
from pintern.errors import UserError
from pintern.report.accounting import TokenCount, cost_per_request, machine_cost
from pintern.studies.ledger import Ledger, Line
from pintern.studies.locks import owner, try_lock
from pintern.studies.study import Cell, Done, Study, cells_of
from pintern.training.workdir import read_config, write_atomically

WAIT_SECONDS = 2.0  # between two looks at cells that others are running
_VERSIONED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")


class CellsFailedError(UserError):
    """Some cells failed; the others are finished."""


def run_study(
    study: Study, workdir: Path, *, only: Sequence[str] = (), redo: Sequence[str] = ()
) -> bool:
    """Runs every cell that isn't finished, one after another.

    A cell that another process is at is left to it; when nothing else is left, its end is awaited,
    and if its owner died it is taken over where its last checkpoint is. A cell that fails doesn't
    stop the others.

    Args:
      study: the grid.
      workdir: its folder: `ledger.jsonl`, `cells/`, `locks/`, `replaced/`.
      only: patterns over cell names; none is all.
      redo: patterns of cells that may be run anew where the study has changed since they were run.

    Returns:
      False when a signal stopped it after saving the running cell.

    Raises:
      UserError: cells whose configuration isn't the one they were run with, unless `redo` names
        them.
      CellsFailedError: at the end, where cells failed.
    """
    cells = select(cells_of(study), only)
    claim_study(study, workdir)
    ledger = Ledger(workdir)
    _set_aside(cells, workdir, ledger, redo)
    failed: dict[str, str] = {}
    pending, began = list(cells), time.monotonic()
    while pending:
        worked = False
        for cell in list(pending):
            with try_lock(_lock_of(cell, workdir)) as mine:
                lines = ledger.lines()
                if cell.name in lines:
                    pending.remove(cell)
                    if lines[cell.name]["fingerprint"] != cell.fingerprint:
                        failed[cell.name] = "another process ran it with another configuration"
                elif mine:
                    print(_progress(cell, cells, lines, failed), file=sys.stderr, flush=True)
                    try:
                        ledger.append(run_cell(study, cell, workdir))
                    except StoppedError as stopped:
                        print(stopped, file=sys.stderr)
                        return False
                    except UserError as error:
                        failed[cell.name] = str(error)
                        print(f"  failed: {error}", file=sys.stderr, flush=True)
                    pending.remove(cell)
                    worked = True
        if pending and not worked:
            time.sleep(WAIT_SECONDS)
    print(f"{len(cells)} cells, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    if failed:
        shown = "; ".join(f"{name}: {why}" for name, why in list(failed.items())[:5])
        raise CellsFailedError(f"{len(failed)} of {len(cells)} cells failed. {shown}")
    return True


def run_cell(study: Study, cell: Cell, workdir: Path) -> Line:
    """Trains (or goes on training), scores and measures a cell; its line of the ledger."""
    began = time.monotonic()
    folder = folder_of(cell, workdir)
    measured = run_arm(cell.arm, folder)
    done = Done(study, cell, folder, measured)
    measures = {measure.name: measure(done) for measure in cell.measures}
    return _line(study, cell, measured, measures, folder, workdir, time.monotonic() - began)


def states(study: Study, workdir: Path) -> dict[str, str]:
    """Cell to what has become of it: `done`, `changed`, `running (<pid> on <host>)`, `begun`,
    `new`."""
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
    return [cell for cell in cells if not patterns or _matches(cell.name, patterns)]


def finished_lines(study: Study, workdir: Path) -> dict[str, tuple[Cell, Line]]:
    """Finished cells that are as the study has them now; changed ones are left out."""
    lines = Ledger(workdir).lines()
    return {
        cell.name: (cell, lines[cell.name])
        for cell in cells_of(study)
        if cell.name in lines and lines[cell.name]["fingerprint"] == cell.fingerprint
    }


def folder_of(cell: Cell, workdir: Path) -> Path:
    """A cell's run folder."""
    return workdir / "cells" / cell.name


def claim_study(study: Study, workdir: Path) -> None:
    """Makes the folder this study's own.

    Raises:
      UserError: it holds another study, or something else.
    """
    path = workdir / "study.json"
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is a file; name a folder.")
    if path.exists():
        name = json.loads(path.read_text())["name"]
        if name != study.name:
            raise UserError(
                f"{workdir} holds the study {name!r}, not {study.name!r}.", "Use another --workdir."
            )
        return
    if workdir.exists() and any(workdir.iterdir()):
        raise UserError(
            f"{workdir} is not empty and holds no study (no study.json).",
            "Use another --workdir; nothing in it was touched.",
        )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({"name": study.name}) + "\n")
    except OSError as error:
        raise UserError(f"--workdir={workdir} can't be written: {error.strerror}.") from error


def versions() -> dict[str, str]:
    """Python and the libraries that a result depends on."""
    return {
        "python": sys.version.split()[0],
        **{name: metadata.version(name) for name in _VERSIONED},
    }


def _line(
    study: Study,
    cell: Cell,
    measured: Measured,
    measures: dict,
    folder: Path,
    workdir: Path,
    seconds: float,
) -> Line:
    import jax

    found, arm = measured.evaluation, cell.arm
    tokens = TokenCount(found.template, found.examples, found.query, found.output)
    cached = arm.prompt.cached and arm.prompt.keep_rate > 0
    step = arm.config.train.steps if arm.trained else 0
    return {
        "cell": cell.name,
        "arm": arm.name,
        "task": cell.task,
        "model": cell.model,
        "seed": cell.seed,
        "factors": dict(cell.factors),
        "fingerprint": cell.fingerprint,
        "trained": arm.what_is_trained,
        "steps": step,
        "metric": found.scores.name,
        "signature": found.scores.signature,
        "score": found.scores.value,
        "slices": {name: scores.value for name, scores in found.slices.items()},
        "reasons": found.scores.reasons,
        # Score and answer of each example stand there, in the test set's order.
        "predictions": str(
            (folder / "eval" / str(step) / "predictions.jsonl").relative_to(workdir)
        ),
        "tokens": {
            "template": tokens.template,
            "examples": tokens.examples,
            "query": tokens.query,
            "output": tokens.output,
            "prompt": tokens.prompt,
        },
        "cached_prefix": cached,
        "cost_per_1000_requests": 1000
        * cost_per_request(tokens, study.prices, cached_prefix=cached),
        "training_seconds": measured.training_seconds,
        "training_cost": machine_cost(measured.training_seconds, study.usd_per_hour),
        "measures": measures,
        "measured_by": [repr(measure) for measure in cell.measures],
        "note": measured.parts.prompts.task.note,
        "seconds": round(seconds, 2),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "backend": jax.default_backend(),
        "versions": versions(),
    }


def _set_aside(cells: Sequence[Cell], workdir: Path, ledger: Ledger, redo: Sequence[str]) -> None:
    """Takes changed cells that may be redone out of the ledger; refuses where one may not be."""
    lines = ledger.lines()
    changed = [cell for cell in cells if _state(cell, workdir, lines) == "changed"]
    kept = [cell for cell in changed if not _matches(cell.name, redo)]
    if kept:
        raise UserError(
            f"{len(kept)} cells were run with another configuration than the study has now: "
            f"{'; '.join(_what_changed(cell, workdir, lines) for cell in kept[:3])}.",
            "Old and new results are never mixed. Run them anew by --redo=PATTERN (old folders go "
            "to replaced/), leave them out by --only, or use another --workdir.",
        )
    for cell in changed:
        with try_lock(_lock_of(cell, workdir)) as mine:
            if not mine or _state(cell, workdir, ledger.lines()) != "changed":
                continue  # another process is redoing it
            folder = folder_of(cell, workdir)
            if _config_changed(cell, workdir):
                place = workdir / "replaced" / cell.name
                place.mkdir(parents=True, exist_ok=True)
                folder.rename(place / str(1 + sum(1 for _ in place.iterdir())))
            ledger.drop(lambda name, cell=cell: name == cell.name)


def _state(cell: Cell, workdir: Path, lines: dict[str, Line]) -> str:
    if cell.name in lines:
        same = lines[cell.name]["fingerprint"] == cell.fingerprint
        return "done" if same else "changed"
    who = owner(_lock_of(cell, workdir))
    if who:
        return f"running ({who})"
    if _config_changed(cell, workdir):
        return "changed"
    return "begun" if folder_of(cell, workdir).exists() else "new"


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


def _lock_of(cell: Cell, workdir: Path) -> Path:
    return workdir / "locks" / cell.name


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _progress(
    cell: Cell, cells: Sequence[Cell], lines: dict[str, Line], failed: dict[str, str]
) -> str:
    """`[13/60] <cell> (about 25 min left)`: what is done, what begins, and how long the rest takes,
    each cell as long as those of its arm took, or as the others that train (or don't)."""
    left = [c for c in cells if c.name not in lines and c.name not in failed]
    done = len(cells) - len(left)
    seconds = _estimator(cells, lines)
    times = [seconds(c) for c in left]
    if not all(times):
        return f"[{done + 1}/{len(cells)}] {cell.name}"
    minutes = sum(times) / 60
    return f"[{done + 1}/{len(cells)}] {cell.name} (about {minutes:.0f} min left)"


def _estimator(cells: Sequence[Cell], lines: dict[str, Line]) -> Callable[[Cell], float]:
    known = [lines[c.name] for c in cells if c.name in lines]

    def mean(chosen: list[Line]) -> float:
        return sum(line["seconds"] for line in chosen) / len(chosen) if chosen else 0.0

    def seconds(cell: Cell) -> float:
        same = [line for line in known if line["arm"] == cell.arm.name]
        kin = [line for line in known if (line["steps"] > 0) == cell.arm.trained]
        return mean(same) or mean(kin)

    return seconds
