"""Lists of numbers that follow from large data, kept on disk between runs.

A file is named by a digest of all that its content follows from, so it never goes stale; a broken
one is made again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

# Records above which they take seconds to make.
LARGE = 20_000


def kept_lists(path: Path | None, make: Callable[[], list[list[int]]]) -> list[list[int]]:
    """The lists in the file, or made and put there, whole or not at all.

    Args:
      path: of the file; None keeps nothing.
      make: makes them.
    """
    found = None if path is None else _read(path)
    if found is None:
        found = make()
        if path is not None:
            _write(path, found)
    return found


def _read(path: Path) -> list[list[int]] | None:
    if not path.exists():
        return None
    try:
        # The archive carries a checksum, which is compared on reading.
        with np.load(path, allow_pickle=False) as file:
            numbers, ends = file["numbers"].tolist(), file["ends"].tolist()
    except Exception as error:  # what a broken archive raises is anybody's guess
        print(f"{path} is broken ({error}); it is made again.", file=sys.stderr)
        return None
    return [numbers[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def _write(path: Path, lists: list[list[int]]) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez(
                file,
                numbers=np.fromiter((n for row in lists for n in row), np.int32),
                ends=np.cumsum([len(row) for row in lists]),
            )
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        print(f"{path.name} can't be kept in {path.parent}: {error.strerror}.", file=sys.stderr)
