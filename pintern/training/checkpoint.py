"""Checkpoints of a run: adapter, optimizer, curriculum state and step; never base weights.

A checkpoint is written to a temporary folder, in the background, and renamed when it is whole; it
is renamed again before it is removed. So a folder whose name is a number is a whole checkpoint at
any moment, whenever the run is killed.

Of several processes the first one alone looks into the folder: it writes what it gathers from all
of them, and what it reads it hands to the others. Its folder need not be theirs.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pintern.adapters.adapter import Adapter, LoraPair
from pintern.curriculum import AdaptiveState
from pintern.distributed import agree, broadcast, count, from_first, is_first
from pintern.errors import UserError
from pintern.models.sharding import fetch
from pintern.training.placement import place
from pintern.training.step import TrainState
from pintern.training.tree_files import (
    HALF,
    READ_ERRORS,
    WRITE_ERRORS,
    TreeWriter,
    is_of_another_tree,
    read_tree,
)

_REMOVED = ".removed"
_LATE_SECONDS = 5.0


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the whole checkpoints in a folder, rising."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def remove_checkpoint(folder: Path, step: int) -> None:
    """Removes a checkpoint, if it is there; one that is half removed counts no more."""
    gone = folder / f"{step}{_REMOVED}"
    shutil.rmtree(gone, ignore_errors=True)
    try:
        (folder / str(step)).rename(gone)
    except FileNotFoundError:
        return
    shutil.rmtree(gone, ignore_errors=True)


class Checkpoints:
    """The checkpoints of one run folder; leaving it as a context waits for what is being written.

    Args:
      directory: the folder, made if absent.
      keep: how many of the latest to keep. While a run trains there is one more: the newest may
        turn out to be of weights that give no finite loss.
      writes: whether this process trains the run, and so may clear away what a killed one left
        half-written; a reader mustn't, since the run may be writing it now.
    """

    def __init__(self, directory: Path, *, keep: int = 2, writes: bool = True):
        self._directory = Path(directory).absolute()
        self._keep, self._writes = keep, writes
        self._steps = from_first(self._look)
        self._pending: int | None = None  # what is being written
        self._writer = TreeWriter()
        self._saved_at = time.monotonic()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self.close()
            return
        # What ended the run is told by its own message, and the other processes may go on: they
        # aren't asked, nor told how the last write ended.
        try:
            if self._pending is not None:
                self._finish(self._pending)
        except UserError as other:
            print(f"error: {other}", file=sys.stderr, flush=True)
        self._writer.close()

    @property
    def latest(self) -> int | None:
        """Step of the newest whole checkpoint, or None."""
        return max(self.steps, default=None)

    @property
    def steps(self) -> list[int]:
        """Steps of all whole checkpoints, rising; waits for the one that is being written."""
        self.wait()
        return list(self._steps)

    def due(self, minutes: float) -> bool:
        """Whether the last save (at first: the start) lies `minutes` back; never if they are 0.

        All processes are told what the first one's clock says: they save together.
        """
        if not minutes:
            return False
        return agree(time.monotonic() - self._saved_at >= 60 * minutes)

    def save(self, step: int, state: TrainState, curriculum: AdaptiveState) -> None:
        """Begins to write the state after `step` optimizer steps; training may go on meanwhile.

        The state is copied first: the next step is given its buffers.

        Raises:
          UserError: the one before, which is waited for, could not be written. Of this one the
            next call tells that waits.
        """
        if step in self.steps:
            return
        self._remove_old()
        self._saved_at = time.monotonic()
        self._pending = step
        tree = jax.tree.map(_copy_for_first, _to_tree(state, curriculum))
        if is_first():
            self._writer.begin(self._directory / str(step), tree)

    def wait(self) -> None:
        """Waits for the checkpoint that is being written, if there is one.

        Raises:
          UserError: it could not be written; on all processes.
        """
        if self._pending is None:
            return
        step, self._pending = self._pending, None
        from_first(lambda: self._finish(step))
        self._steps = sorted({*self._steps, step})

    def discard(self, step: int) -> None:
        """Removes the checkpoint of `step`, if there is one: it turned out to be no good."""
        self.wait()
        if is_first():
            remove_checkpoint(self._directory, step)
        self._steps = [kept for kept in self._steps if kept != step]

    def restore(
        self, template: TrainState, step: int | None = None
    ) -> tuple[int, TrainState, AdaptiveState]:
        """Reads a checkpoint (the latest without `step`) into the shape of `template`.

        Raises:
          UserError: no checkpoint, one whose tree or shapes differ from the config's, or one whose
            files are damaged.
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
        wanted = _to_tree(template, AdaptiveState())
        leaves: list[np.ndarray] = []
        from_first(lambda: leaves.extend(jax.tree.leaves(self._read(step, wanted))))
        wanted, graph = jax.tree.flatten(wanted)
        found = leaves or [np.empty(leaf.shape, leaf.dtype) for leaf in wanted]
        laid = [_lay(broadcast(x), like) for x, like in zip(found, wanted, strict=True)]
        state, curriculum = _from_tree(jax.tree.unflatten(graph, laid), template)
        return step, state, curriculum

    def close(self) -> None:
        """Waits for what is being written, and removes what is more than is to be kept."""
        self.wait()
        self._writer.close()
        self._remove_old()

    # ── in the first process alone ──

    def _look(self) -> list[int]:
        if self._writes:
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(
                    f"{self._directory} can't be made: {error.strerror}.",
                    "Use a --workdir that can be written.",
                ) from error
            for left in [path for path in self._directory.iterdir() if not path.name.isdigit()]:
                if left.name.endswith(_REMOVED) or HALF in left.name:
                    shutil.rmtree(left, ignore_errors=True)
        return checkpoint_steps(self._directory)

    def _finish(self, step: int) -> None:
        """Waits for the checkpoint that is being written, of this step."""
        try:
            self._writer.finish()
        except WRITE_ERRORS as error:
            raise self._unwritten(step, error) from error

    def _read(self, step: int, wanted: dict[str, Any]) -> dict[str, Any]:
        """The tree of a checkpoint, in the shapes of `wanted`."""
        try:
            tree = read_tree(self._directory / str(step), wanted)
        except READ_ERRORS as error:
            raise self._unread(step, error) from error
        _check_shapes(tree, wanted, f"checkpoint {step} in {self._directory}")
        return tree

    def _remove_old(self) -> None:
        if not self._writes:
            return
        old = self._steps[: -self._keep]
        for step in old if is_first() else ():
            remove_checkpoint(self._directory, step)
        self._steps = self._steps[-self._keep :]

    def _unread(self, step: int, error: Exception) -> UserError:
        where = f"Checkpoint {step} in {self._directory}"
        if is_of_another_tree(error):
            return UserError(
                f"{where} has other parts than the config makes.",
                "It was made with another adapter or optimizer; use another --workdir.",
            )
        before = [other for other in self._steps if other < step]
        mend = "Put back a copy of it, or train anew in another --workdir."
        if before and self._directory.name == "checkpoints":  # a run's one teacher is never redone
            mend = f"Remove the folder {step}, and the run goes on from step {before[-1]}."
        reason = textwrap.shorten(str(error) or type(error).__name__, 160, placeholder=" …")
        return UserError(f"{where} is damaged: {reason.rstrip('.')}.", mend)

    def _unwritten(self, step: int, error: Exception) -> UserError:
        # Room for what is left of it may be what the others need. Orbax ends with the first array
        # that fails, while others may still be written, and make the folder anew.
        clean, until = 0, time.monotonic() + _LATE_SECONDS
        while clean < 3 and time.monotonic() < until:
            clean += 1
            for left in list(self._directory.glob(f"{step}{HALF}*")):
                shutil.rmtree(left, ignore_errors=True)
                clean = 0
            time.sleep(0.05)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        whole = ", ".join(map(str, self._steps))
        return UserError(
            f"Checkpoint {step} could not be written to {self._directory}: {reason}.",
            f"Whole are: {whole}." if whole else "There is none yet.",
            "Free space or mend the folder, and run the same command again.",
        )


def _copy_for_first(leaf: jax.Array | np.ndarray) -> jax.Array | np.ndarray | None:
    """A copy of the whole leaf in the first process.

    One process alone makes it on the leaf's devices; of several, all take part in gathering it.
    """
    if count() == 1 and isinstance(leaf, jax.Array):
        return jnp.copy(leaf)
    whole = fetch(leaf)
    return np.array(whole) if is_first() else None  # on a CPU `whole` is the buffer itself


def _lay(array: np.ndarray, like: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    """The array as `like` is: on its devices, or here."""
    if not isinstance(like, jax.Array):
        return array
    return place(array, like.sharding)


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
