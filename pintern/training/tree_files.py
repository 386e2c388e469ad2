"""Trees of numpy arrays in folders: the only file that knows orbax.

Orbax's first interface, and not `orbax.checkpoint.v1`, which compares the folder's name on all
processes before it writes, so that none can write alone. Either reads what the other wrote.
"""

from __future__ import annotations

import functools
import logging
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax import checkpoint as ocp

# Orbax tells every rename, and of a write that failed its threads' tracebacks: it is told here.
logging.getLogger("absl").setLevel(logging.CRITICAL)

# Tensorstore tells a full disk by a ValueError, orbax some failures by a RuntimeError.
WRITE_ERRORS = (OSError, ValueError, RuntimeError)
READ_ERRORS = (ValueError, KeyError, TypeError, FileNotFoundError)
HALF = ".orbax-checkpoint-tmp"  # in the name of a folder that is being written

# The first process neither waits for the others nor asks them.
_ALONE = ocp.options.MultiprocessingOptions(
    primary_host=0, active_processes={0}, barrier_sync_key_prefix="first"
)


class TreeWriter:
    """Writes trees in the background, one after the other; for the first process."""

    def __init__(self) -> None:
        self._writer: ocp.AsyncCheckpointer | None = None  # has threads: not made for a reader
        self._refused: Exception | None = None

    def begin(self, folder: Path, tree: Any) -> None:
        """Begins to write a tree of arrays, which nobody changes any more, to a new folder."""
        if self._writer is None:
            _silence_late_writes()
            self._writer = ocp.AsyncCheckpointer(_handler(), multiprocessing_options=_ALONE)
        try:
            self._writer.save(folder, args=ocp.args.Composite(state=ocp.args.PyTreeSave(tree)))
        except WRITE_ERRORS as error:
            self._refused = error

    def finish(self) -> None:
        """Waits for it.

        Raises:
          one of WRITE_ERRORS: it could not be written.
        """
        refused, self._refused = self._refused, None
        if refused is not None:
            raise refused
        if self._writer is not None:
            self._writer.wait_until_finished()

    def close(self) -> None:
        """Ends its threads; nothing is being written any more."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def read_tree(folder: Path, wanted: Any) -> Any:
    """What was written to a folder.

    Args:
      folder: where.
      wanted: tree of arrays; found are those names and types, and the shapes that were written.

    Raises:
      one of READ_ERRORS: it can't be read, or its names are others.
    """
    as_numpy = jax.tree.map(
        lambda x: ocp.RestoreArgs(restore_type=np.ndarray, dtype=x.dtype), wanted
    )
    args = ocp.args.PyTreeRestore(item=wanted, restore_args=as_numpy)
    reader = ocp.Checkpointer(_handler(), multiprocessing_options=_ALONE)
    try:
        return reader.restore(folder, args=ocp.args.Composite(state=args)).state
    finally:
        reader.close()


def is_of_another_tree(error: Exception) -> bool:
    """Whether that is why it couldn't be read: there are other names than were wanted."""
    return "tree structures do not match" in str(error)


@functools.cache
def _silence_late_writes() -> None:
    """On a full disk orbax ends with the first array that fails; of those that fail later, Python
    would print a traceback each.
    """
    told = sys.unraisablehook

    def hook(found: Any) -> None:
        if str(found.exc_value) != "Event loop is closed":
            told(found)

    sys.unraisablehook = hook


def _handler() -> ocp.CompositeCheckpointHandler:
    """For folders that hold one tree, `state`."""
    return ocp.CompositeCheckpointHandler(
        state=ocp.PyTreeCheckpointHandler(multiprocessing_options=_ALONE),
        composite_options=ocp.CompositeOptions(multiprocessing_options=_ALONE),
    )
