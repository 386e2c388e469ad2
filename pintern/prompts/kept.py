"""Lists of numbers that follow from large data, kept on disk between runs.

A file is named by a digest of all that its content follows from, so it never goes stale; a broken
one is made again.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import numpy as np

from pintern.distributed import any_of, count, from_first

T = TypeVar("T")

# Records above which they take seconds to make.
LARGE = 20_000


def kept_lists(path: Path | None, make: Callable[[], list[list[int]]]) -> list[list[int]]:
    """The lists in the file, or made and put there, whole or not at all.

    Args:
      path: of the file; None keeps nothing.
      make: makes them.
    """
    found = None if path is None else held_by_all(_read(path), lambda lists: repr(lists).encode())
    if found is None:
        found = make()
        if path is not None:
            _write(path, found)
    return found


def held_by_all(found: T | None, content: Callable[[T], bytes]) -> T | None:
    """What a process found on its disk, if all processes of the run found the same; else None.

    Hosts have a disk each, one of them a new one perhaps. What the base has to be run for is made
    by all processes together, or the others would wait for those that found it.

    Args:
      found: None if there is nothing.
      content: what tells it from others.
    """
    if count() == 1:
        return found
    own = None if found is None else hashlib.sha256(content(found)).hexdigest()
    first = from_first(lambda: own)
    return None if any_of(own is None or own != first) else found


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
