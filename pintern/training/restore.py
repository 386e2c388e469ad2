"""Reads a finished or running run back: its parts and the adapter of one of its checkpoints."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from pintern.adapters.adapter import Adapter
from pintern.assemble import Parts, assemble, fresh_adapter
from pintern.config import default_config, trains
from pintern.training.checkpoint import Checkpoints
from pintern.training.step import TrainState, make_optimizer
from pintern.training.workdir import check_base


def restore_run(
    workdir: Path | None, config: ConfigDict, step: int | None = None, *, base: bool = False
) -> tuple[Parts, Adapter | None, int]:
    """Parts, adapter and step of a run's checkpoint.

    Args:
      workdir: the run's folder; None for a base that has none.
      config: the run's, perhaps with another inference prompt.
      step: which checkpoint; the latest by default.
      base: leave the adapter out and look at no checkpoint; the step is then 0. So it is for a
        config that trains nothing.
    """
    # It was trained on another mesh, perhaps: here it lies on whatever devices there are.
    config.mesh = default_config().mesh
    parts = assemble(config, prompts_directory=workdir and workdir / "prompts")
    if workdir is not None:
        check_base(workdir, parts.checkpoint)
    if base or not trains(config):
        return parts, None, 0
    return parts, *restore_adapter(workdir, parts, step)


def restore_adapter(workdir: Path, parts: Parts, step: int | None = None) -> tuple[Adapter, int]:
    """Adapter and step of a checkpoint (the latest without `step`) of the run with these parts."""
    adapter = fresh_adapter(parts)
    config = parts.config
    template = TrainState(adapter, make_optimizer(config.train).init(adapter))
    checkpoints = Checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep, writes=False)
    found, state, _ = checkpoints.restore(template, step)
    checkpoints.close()
    return state.adapter, found


def stage_adapters(workdir: Path, parts: Parts) -> list[tuple[int, Adapter]]:
    """Step and adapter at the end of each stage but the last, if `checkpoint.stages` kept them."""
    if not (workdir / "stages").is_dir():
        return []
    adapter = fresh_adapter(parts)
    template = TrainState(adapter, make_optimizer(parts.config.train).init(adapter))
    kept = Checkpoints(workdir / "stages", writes=False)
    found = [(step, kept.restore(template, step)[1].adapter) for step in kept.steps]
    kept.close()
    return found
