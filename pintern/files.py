"""Files that are whole at any moment, and a clear message where one can't be written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pintern.errors import UserError


def write_atomically(path: Path, text: str | bytes) -> None:
    """Writes through a temporary file, so that nobody ever sees half of it.

    Raises:
      UserError: it can't be written; what was there is as it was.
    """
    temporary = path.with_name(path.name + ".tmp")
    with writing(path):
        try:
            temporary.write_bytes(text.encode() if isinstance(text, str) else text)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def bring_up_to_date(path: Path, text: str) -> None:
    """Writes a text unless it is there already, so that a folder may only be read by then.

    Raises:
      UserError: see `write_atomically`.
    """
    if not path.exists() or path.read_bytes() != text.encode():
        write_atomically(path, text)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tells that a file can't be written: a full disk, a folder that may only be read."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} can't be written: {error.strerror or error}.",
            "Free space or mend the folder, and run the same command again; checkpoints that are "
            "there are whole.",
        ) from error
