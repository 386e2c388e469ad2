"""Whether the processes of a run see one and the same folder: found out before they rest on it."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

from pintern.distributed import any_of, count, from_first, is_first
from pintern.errors import UserError
from pintern.folders import PASSING

# A network's file system may show other machines a new file that late.
_SEEN_SECONDS = 10.0


def check_shared(folder: Path, *, made: bool) -> None:
    """Has the first process write a file there, and the others look for it.

    Args:
      folder: a run's, by the name that each process was given.
      made: make it if it is absent; else there is nothing to find out then.

    Raises:
      UserError: the others don't see the file, or the first can't write it; on all processes.
    """
    if count() == 1:
        return
    name = from_first(lambda: _write_token(folder, made=made))
    if name is None:
        return
    apart = any_of(not (is_first() or _appears(folder / name)))
    if is_first():
        (folder / name).unlink(missing_ok=True)
    if apart:
        raise UserError(
            f"--workdir={folder} is not one folder for all {count()} processes: what the first "
            "one writes there, another doesn't see.",
            "Give a folder on a file system that all hosts share, or a bucket's (gs://, s3://).",
        )


def _write_token(folder: Path, *, made: bool) -> str | None:
    if not (made or folder.is_dir()) or folder.is_file():
        return None
    name = f"{PASSING}{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    except OSError as error:
        raise UserError(f"--workdir={folder} can't be written: {error.strerror}.") from error
    return name


def _appears(path: Path) -> bool:
    until = time.monotonic() + _SEEN_SECONDS
    while not path.exists():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True
