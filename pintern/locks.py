"""Locks that the system lets go when their owner dies, however it dies.

`flock` holds for as long as the process has the file open, so that nothing is left to clear away
after a kill −9 and no age has to be guessed. The file stays; what is in it says who came last.
Between machines it needs a file system with locks (local disks, NFS 4).
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pintern.errors import UserError
from pintern.files import writing


@contextmanager
def try_lock(path: Path, *, needed: bool = True) -> Iterator[bool]:
    """Takes the lock if nobody has it: True inside the block, False where another has.

    Args:
      path: the lock's file; made if absent.
      needed: False goes on with a warning where the file system has no locks.

    Raises:
      UserError: the file can't be written, or not be locked.
    """
    with _opened(path) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            told = f"{path} can't be locked: {error.strerror}."
            if needed:
                raise UserError(told, "Use a --workdir on a file system with locks.") from error
            print(f"warning: {told} Start no second one there.", file=sys.stderr, flush=True)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()} on {socket.gethostname()}\n".encode())
        yield True


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Waits for the lock."""
    with _opened(path) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def owner(path: Path) -> str:
    """Who holds the lock now (`<pid> on <host>`), or nothing."""
    if not path.exists():
        return ""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # Shared: two that look at the same time don't take each other for owners.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return last_owner(path)
    finally:
        os.close(descriptor)
    return ""


def last_owner(path: Path) -> str:
    """Who took the lock last (`<pid> on <host>`), whether or not it is held."""
    return path.read_text().strip() or "not known"


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
