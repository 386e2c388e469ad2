"""A run's folder: claimed by one config and one base, and read back by them alone.

config.json  base.json  prompts/  checkpoints/  metrics.jsonl  timings.jsonl  tensorboard/  eval/
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from pintern.config import differences, from_json, to_json
from pintern.errors import UserError
from pintern.models.load import Checkpoint


def claim(workdir: Path, config: ConfigDict) -> bool:
    """Makes the folder this run's own; True if the run is there already and is to be resumed.

    Raises:
      UserError: the folder holds a run of another config, or files that are not a run's.
    """
    path = workdir / "config.json"
    # A run that ended before its base was recorded has trained nothing: a wrong path, say.
    if path.exists() and (workdir / "base.json").exists():
        check_config(workdir, config)
        return True
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is a file; name a folder.")
    if workdir.exists() and any(workdir.iterdir()) and not path.exists():
        raise UserError(
            f"{workdir} is not empty and holds no run (no config.json).",
            "Use another --workdir; nothing in it was touched.",
        )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_atomically(path, to_json(config))
    except OSError as error:
        raise UserError(f"--workdir={workdir} can't be written: {error.strerror}.") from error
    return False


def check_config(workdir: Path, config: ConfigDict, *, besides: tuple[str, ...] = ()) -> None:
    """Refuses another config than the run's, but for fields whose names begin as `besides` says."""
    changed = [
        change
        for change in differences(read_config(workdir), config)
        if not change.startswith(besides)
    ]
    if changed:
        raise UserError(
            f"{workdir} holds a run of another config ({'; '.join(changed[:5])}).",
            "Use another --workdir, or the same config to resume it.",
        )


def check_base(workdir: Path, checkpoint: Checkpoint) -> None:
    """Records the base of a new run; refuses another base for an old one."""
    path = workdir / "base.json"
    if not path.exists():
        record = {"path": checkpoint.directory.name, "fingerprint": checkpoint.fingerprint}
        write_atomically(path, json.dumps(record, indent=2) + "\n")
        return
    recorded = json.loads(path.read_text())
    if recorded["fingerprint"] != checkpoint.fingerprint:
        raise UserError(
            f"{workdir} was trained on another base: fingerprint {recorded['fingerprint'][:12]} "
            f"({recorded['path']}), not {checkpoint.fingerprint[:12]} ({checkpoint.directory}).",
            "Give the same checkpoint, or use another --workdir.",
        )


def read_config(workdir: Path) -> ConfigDict:
    """The config that a run was started with."""
    path = workdir / "config.json"
    if not path.exists():
        raise UserError(
            f"{workdir} holds no run (no config.json).",
            "Train one first: python -m pintern.train --workdir=DIR.",
        )
    try:
        return from_json(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error.msg} at line {error.lineno}.") from error


def write_atomically(path: Path, text: str) -> None:
    """Writes through a temporary file, so that a reader never sees half of it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


class JsonLines:
    """A file of one JSON object a line, cut back to a step when a run resumes.

    Args:
      path: the file.
      before: keep only lines whose `step` is smaller.
    """

    def __init__(self, path: Path, *, before: int):
        kept = []
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    break  # the line that a kill cut short, and nothing is behind it
                if row["step"] < before:
                    kept.append(line)
        write_atomically(path, "".join(f"{line}\n" for line in kept))
        self._file = path.open("a")

    def write(self, **row: Any) -> None:
        """Appends a line and hands it to the system."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
