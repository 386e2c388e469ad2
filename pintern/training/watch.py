"""Scores the checkpoints of a run while it trains."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from pintern.adapters.adapter import Adapter
from pintern.assemble import Parts
from pintern.errors import UserError
from pintern.training.checkpoint import Checkpoints, checkpoint_steps
from pintern.training.restore import restore_run, state_template
from pintern.training.signals import Signals
from pintern.training.workdir import read_config


def watch(
    workdir: Path,
    signals: Signals,
    *,
    prepare: Callable[[ConfigDict], None],
    name_of: Callable[[ConfigDict, int], str],
    score: Callable[[Parts, Adapter, int], None],
    poll: float,
) -> bool:
    """Scores each checkpoint once, the newest first, until the run's last step is scored.

    A checkpoint that training removes before its turn is left out. What was scored before this
    watcher came (an earlier one, or `pintern.evaluate` by hand) is not scored again.

    Args:
      workdir: the run's folder; it may not be there yet.
      signals: when to end early.
      prepare: adapts the run's config (the inference prompt) and checks it.
      name_of: config and step → the name of the step's folder in eval/.
      score: scores and writes a step.
      poll: seconds between looks.

    Returns:
      Whether the run's last step is scored.
    """
    left_out: set[int] = set()
    parts = config = None
    while not signals.end.is_set():
        last_look = signals.training_ended  # before the look: a checkpoint may come in between
        steps = checkpoint_steps(workdir / "checkpoints")
        # What a run was begun with may be another's, as long as it has nothing to score.
        if steps and config is None:
            config = read_config(workdir)
            prepare(config)
        names = {step: name_of(config, step) for step in steps if step not in left_out}
        todo = [step for step, name in names.items() if not _scored(workdir, name)]
        if todo:
            if parts is None:
                parts, *_ = restore_run(workdir, config, base=True)
            adapter = _restore(workdir, parts, todo[-1])
            if adapter is None:
                left_out.add(todo[-1])
            else:
                score(parts, adapter, todo[-1])
        elif steps and steps[-1] >= config.train.steps:
            return True
        elif last_look:
            return False
        else:
            signals.end.wait(poll)
    return False


def _scored(workdir: Path, name: str) -> bool:
    try:
        json.loads((workdir / "eval" / name / "scores.json").read_text())
    except (OSError, json.JSONDecodeError):
        return False
    return True


def _restore(workdir: Path, parts: Parts, step: int) -> Adapter | None:
    """The adapter of a checkpoint; None where training has removed it by now."""
    keep = parts.config.checkpoint.keep
    checkpoints = Checkpoints(workdir / "checkpoints", keep=keep, writes=False)
    try:
        return checkpoints.restore(state_template(parts), step)[1].adapter
    except (UserError, OSError):
        if step in checkpoint_steps(workdir / "checkpoints"):
            raise
        return None
    finally:
        checkpoints.close()
