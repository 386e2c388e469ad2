"""Reads a finished or running run back: its parts and the adapter of one of its checkpoints."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from pintern.adapters.adapter import Adapter
from pintern.assemble import Parts, assemble, fresh_adapter
from pintern.config import default_config, trains
from pintern.models.sharding import mesh_of
from pintern.training.checkpoint import Checkpoints
from pintern.training.placement import place, state_shardings
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
    keep = parts.config.checkpoint.keep
    checkpoints = Checkpoints(workdir / "checkpoints", keep=keep, writes=False)
    found, state, _ = checkpoints.restore(state_template(parts), step)
    checkpoints.close()
    return state.adapter, found


def stage_adapters(workdir: Path, parts: Parts) -> list[tuple[int, Adapter]]:
    """Step and adapter at the end of each stage but the last, if `checkpoint.stages` kept them."""
    kept = Checkpoints(workdir / "stages", writes=False)
    template = state_template(parts) if kept.steps else None
    found = [(step, kept.restore(template, step)[1].adapter) for step in kept.steps]
    kept.close()
    return found


def state_template(parts: Parts) -> TrainState:
    """A state of the config's shape, where the base lies."""
    adapter, optimizer = fresh_adapter(parts), make_optimizer(parts.config.train)
    state = TrainState(adapter, optimizer.init(adapter))
    mesh = mesh_of(parts.checkpoint.decoder.embedding[...])
    return place(state, state_shardings(mesh, optimizer, state))
