"""Cells that are trained in one program: soft prompts that differ in seed, rate or initialisation.

A soft prompt is so small beside its frozen base that several are trained for little more than one.
Each member is a run folder as if it had been trained alone; what its numbers are to the last bit
depends on who stood beside it, so that those who were begun together go on together.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pintern.config import fingerprint
from pintern.studies.study import Cell
from pintern.training.members import RECORD, same_population
from pintern.training.workdir import read_record


def companions(
    cell: Cell, grid: Sequence[Cell], folders: dict[str, Path], limit: int
) -> list[Cell]:
    """The cells that this one is trained with, itself among them, in the grid's order.

    A cell that was begun keeps the members that it was begun with, finished ones too. One that
    wasn't is joined by others that weren't and that may share its program.

    Args:
      cell: to be trained now.
      grid: all cells of the study.
      folders: cell to run folder.
      limit: members of a new population at most.
    """
    if not _may_join(cell):
        return [cell]
    folder = folders[cell.name]
    if folder.exists():
        record = folder / RECORD
        if not record.exists():
            return [cell]  # begun alone
        wanted = set(read_record(record, "members")["members"])
        return [
            other
            for other in grid
            if fingerprint(other.arm.config) in wanted and folders[other.name].exists()
        ]
    found = {fingerprint(cell.arm.config): cell}  # members of one config would be one run twice
    for other in grid:
        if len(found) >= limit:
            break
        new = not folders[other.name].exists() and fingerprint(other.arm.config) not in found
        if new and _may_join(other) and same_population(cell.arm.config, other.arm.config):
            found[fingerprint(other.arm.config)] = other
    return [each for each in grid if each in found.values()]


def _may_join(cell: Cell) -> bool:
    config = cell.arm.config
    return (
        cell.arm.trained
        and not config.adapter.targets
        and config.curriculum.schedule != "adaptive"
        and not config.curriculum.smoothing
        and not config.model.random_init
        and not config.checkpoint.stages
    )
