"""Whose a folder is: nothing is written into one that holds something else."""

from __future__ import annotations

import re
from pathlib import Path

from pintern.errors import UserError

# Begins the names of files that say nothing of whose a folder is: of a moment, or left by a kill.
PASSING = ".pintern-"
LOCK = f"{PASSING}lock"  # whoever trains in the folder holds it
# A run's folders of checkpoints; its later ones rest on its teacher and stages.
CHECKPOINTS = ("teacher", "stages", "checkpoints")


def plain_name(text: str) -> str:
    """A text as a name for a folder or a job: lower case, digits and single dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def check_folder(folder: Path, mark: str, what: str) -> None:
    """Refuses a folder that holds other files than a command's own.

    Args:
      folder: by `--workdir`; it may be absent or empty.
      mark: the file or folder in it by which the command knows its own, `config.json`.
      what: it is then, `run`.

    Raises:
      UserError: it is a file, or holds something and not the mark.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--workdir={folder} is a file; name a folder.")
    found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if mark not in found and any(not name.startswith(PASSING) for name in found):
        raise UserError(
            f"{folder} is not empty and holds no {what} (no {mark}).",
            "Use another --workdir; nothing in it was touched.",
        )
