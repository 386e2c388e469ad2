"""Checkpoints of a run: adapter, optimizer, curriculum state and step; never base weights.

The only file that knows orbax. A checkpoint is written to a temporary folder and renamed, so that
one that is there is whole.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from pintern.adapters.adapter import Adapter, LoraPair
from pintern.curriculum import AdaptiveState
from pintern.distributed import is_first
from pintern.errors import UserError
from pintern.training.step import TrainState

logging.getLogger("absl").setLevel(logging.ERROR)  # orbax tells every rename


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
      directory: the folder, made if absent.
      keep: how many of the latest to keep.
      writes: whether this process trains the run, and so may clear away what a killed one left
        half-written; a reader mustn't, since the run may be writing it now.
    """

    def __init__(self, directory: Path, *, keep: int = 2, writes: bool = True):
        self._directory = Path(directory).absolute()
        self._checkpointer = ocp.training.Checkpointer(
            self._directory,
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=writes,
        )

    @property
    def latest(self) -> int | None:
        """Step of the newest whole checkpoint, or None."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    @property
    def steps(self) -> list[int]:
        """Steps of all whole checkpoints, rising."""
        return sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)

    def save(self, step: int, state: TrainState, curriculum: AdaptiveState) -> None:
        """Writes the state after `step` optimizer steps; returns when it is on disk."""
        if self.latest == step:
            return
        try:
            self._checkpointer.save(step, _to_tree(state, curriculum), force=True)
        except OSError as error:
            raise UserError(
                f"Checkpoint {step} could not be written to {self._directory}: {error}.",
                "Earlier checkpoints are whole; free space or mend the folder and run again.",
            ) from error

    def discard(self, step: int) -> None:
        """Removes the checkpoint of `step`, if there is one: it turned out to be no good."""
        if is_first():
            shutil.rmtree(self._directory / str(step), ignore_errors=True)

    def restore(
        self, template: TrainState, step: int | None = None
    ) -> tuple[int, TrainState, AdaptiveState]:
        """Reads a checkpoint (the latest without `step`) into the shape of `template`.

        Raises:
          UserError: no checkpoint, or one whose tree or shapes differ from the config's.
        """
        step = self.latest if step is None else step
        if step is None:
            raise UserError(
                f"{self._directory} holds no checkpoint; train first (python -m pintern.train)."
            )
        if step not in self.steps:
            raise UserError(
                f"{self._directory} holds no checkpoint of step {step}.",
                f"There are: {', '.join(map(str, self.steps)) or 'none'}.",
            )
        # Orbax reads a numpy leaf back only into one: it was stored without a sharding.
        abstract = jax.tree.map(
            lambda x: (
                jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
                if isinstance(x, jax.Array)
                else x
            ),
            _to_tree(template, AdaptiveState()),
        )
        try:
            tree = self._checkpointer.load(step, abstract)
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            raise UserError(
                f"Checkpoint {step} in {self._directory} doesn't fit the config:",
                f"{(str(error).splitlines() or ['?'])[0]}",
                "It was made with another adapter or optimizer; use another --workdir.",
            ) from error
        _check_shapes(tree, abstract, f"checkpoint {step} in {self._directory}")
        state, curriculum = _from_tree(tree, template)
        return step, state, curriculum

    def close(self) -> None:
        """Waits for what is being written."""
        self._checkpointer.close()


def _to_tree(state: TrainState, curriculum: AdaptiveState) -> dict[str, Any]:
    adapter = state.adapter
    return {
        "lora": {name: {"a": pair.a, "b": pair.b} for name, pair in adapter.lora.items()},
        "soft_prompt": {} if adapter.soft_prompt is None else {"vectors": adapter.soft_prompt},
        "optimizer": dict(enumerate_leaves(state.optimizer)),
        "curriculum": {
            "stage": np.array(curriculum.stage),
            "since": np.array(curriculum.since),
        },
    }


def _from_tree(tree: dict[str, Any], template: TrainState) -> tuple[TrainState, AdaptiveState]:
    adapter: Adapter = template.adapter.replace(
        lora={name: LoraPair(a=pair["a"], b=pair["b"]) for name, pair in tree["lora"].items()},
        soft_prompt=tree["soft_prompt"].get("vectors"),
    )
    names = [name for name, _ in enumerate_leaves(template.optimizer)]
    optimizer = jax.tree.unflatten(
        jax.tree.structure(template.optimizer), [tree["optimizer"][name] for name in names]
    )
    curriculum = AdaptiveState(
        stage=int(tree["curriculum"]["stage"]), since=int(tree["curriculum"]["since"])
    )
    return TrainState(adapter, optimizer), curriculum


def enumerate_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Leaves of a tree with their number as a name: optax states are tuples of tuples."""
    return [(f"{i:04d}", leaf) for i, leaf in enumerate(jax.tree.leaves(tree))]


def _check_shapes(tree: Any, wanted: Any, what: str) -> None:
    found = jax.tree_util.tree_flatten_with_path(tree)[0]
    for (path, leaf), expected in zip(found, jax.tree.leaves(wanted), strict=True):
        if np.shape(leaf) != expected.shape:
            raise UserError(
                f"{jax.tree_util.keystr(path)} of {what} has shape {np.shape(leaf)}; the config "
                f"makes it {expected.shape}.",
                "Use the config that it was trained with, or another --workdir.",
            )
