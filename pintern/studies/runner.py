"""Runs a study's cells, alone or beside other processes, and writes each down when it is done."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pintern.arms import StoppedError, run_arm
from pintern.errors import UserError
from pintern.locks import try_lock
from pintern.studies.folder import claim_study, folder_of, lock_of, select, set_aside
from pintern.studies.ledger import Ledger, Line
from pintern.studies.line import line_of
from pintern.studies.study import Cell, Done, Study, cells_of
from pintern.studies.together import companions
from pintern.training.population import train_population

WAIT_SECONDS = 2.0  # between two looks at cells that others are running


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
      UserError: a pattern that matches no cell; cells whose configuration isn't the one they were
        run with, unless `redo` names them.
      CellsFailedError: at the end, where cells failed.
    """
    grid = cells_of(study)
    cells = select(grid, only)
    select(grid, redo)  # each pattern is to mean something
    claim_study(study, workdir)
    ledger = Ledger(workdir)
    set_aside(cells, workdir, ledger, redo)
    failed: dict[str, str] = {}
    pending, began = list(cells), time.monotonic()
    while pending:
        worked = False
        for cell in list(pending):
            lines = ledger.lines()
            if cell.name in lines:
                pending.remove(cell)
                if lines[cell.name]["fingerprint"] != cell.fingerprint:
                    failed[cell.name] = "another process ran it with another configuration"
                continue
            if cell.name in failed:
                pending.remove(cell)
                continue
            with _take(cell, grid, cells, workdir, study.population) as taken:
                lines = ledger.lines()  # who had it may have finished it since
                if not taken or cell.name in lines:
                    continue
                print(_progress(cell, cells, lines, failed), file=sys.stderr, flush=True)
                try:
                    _train_together(taken, workdir, failed)
                    for one in taken:
                        if one.name not in lines and one.name not in failed:
                            _finish(study, one, workdir, ledger, failed)
                except StoppedError as stopped:
                    print(stopped, file=sys.stderr)
                    return False
                worked = True
        if pending and not worked:
            time.sleep(WAIT_SECONDS)
    print(f"{len(cells)} cells, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    if failed:
        shown = "; ".join(f"{name}: {why}" for name, why in list(failed.items())[:5])
        raise CellsFailedError(f"{len(failed)} of {len(cells)} cells failed. {shown}")
    return True


@contextmanager
def _take(
    cell: Cell, grid: Sequence[Cell], cells: Sequence[Cell], workdir: Path, limit: int
) -> Iterator[list[Cell]]:
    """Locks a cell, and those that it is trained with; none where another process has it.

    New companions that another process has are left to it. Where cells were begun together all are
    needed.
    """
    with ExitStack() as stack:
        if not stack.enter_context(try_lock(lock_of(cell, workdir))):
            yield []
            return
        begun = folder_of(cell, workdir).exists()
        folders = {each.name: folder_of(each, workdir) for each in grid}
        wanted = companions(cell, grid if begun else cells, folders, limit)
        taken = [
            other
            for other in wanted
            if other.name == cell.name or stack.enter_context(try_lock(lock_of(other, workdir)))
        ]
        yield taken if len(taken) == len(wanted) or not begun else []


def _train_together(cells: Sequence[Cell], workdir: Path, failed: dict[str, str]) -> None:
    """Trains cells as one population; one by itself is trained where it is scored."""
    if len(cells) == 1:
        return
    print(f"  together with {', '.join(cell.name for cell in cells[1:])}", file=sys.stderr)
    configs = [cell.arm.config for cell in cells]
    try:
        outcomes = train_population(configs, [folder_of(cell, workdir) for cell in cells])
    except UserError as error:
        failed.update({cell.name: str(error) for cell in cells})
        return
    if any(outcome.state == "stopped" for outcome in outcomes):
        raise StoppedError("Stopped by a signal; the population is saved. Run again to go on.")
    for cell, outcome in zip(cells, outcomes, strict=True):
        if outcome.state == "diverged":
            failed[cell.name] = outcome.message


def _finish(
    study: Study, cell: Cell, workdir: Path, ledger: Ledger, failed: dict[str, str]
) -> None:
    try:
        ledger.append(run_cell(study, cell, workdir))
    except StoppedError:
        raise
    except UserError as error:
        failed[cell.name] = str(error)
        print(f"  failed: {error}", file=sys.stderr, flush=True)


def run_cell(study: Study, cell: Cell, workdir: Path) -> Line:
    """Trains (or goes on training), scores and measures a cell; its line of the ledger."""
    began = time.monotonic()
    folder = folder_of(cell, workdir)
    measured = run_arm(cell.arm, folder)
    done = Done(study, cell, folder, measured)
    measures = {measure.name: measure(done) for measure in cell.measures}
    return line_of(study, cell, measured, measures, folder, workdir, time.monotonic() - began)


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
