"""One worker to a cell: a lock that the system lets go when its owner dies, however it dies.

`flock` holds for as long as the process has the file open, so that nothing is left to clear away
after a kill −9 and no age has to be guessed. The file stays; what is in it says who came last.
Between machines it needs a file system with locks (local disks, NFS 4).
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Takes the lock if nobody has it: True inside the block, False where another has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()} on {socket.gethostname()}\n".encode())
        yield True
    finally:
        os.close(descriptor)


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Waits for the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def owner(path: Path) -> str:
    """Who holds the lock now (`<pid> on <host>`), or nothing."""
    if not path.exists():
        return ""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # Shared: two that look at the same time don't take each other for owners.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return path.read_text().strip() or "another process"
    finally:
        os.close(descriptor)
    return ""
