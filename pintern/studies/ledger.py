"""`ledger.jsonl`: one line for every finished cell of a study, whoever finished it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pintern.files import write_atomically
from pintern.locks import lock

SCHEMA = 1

Line = dict[str, Any]


class Ledger:
    """The ledger of a study's folder.

    Args:
      workdir: the study's folder.
    """

    def __init__(self, workdir: Path):
        self.path = workdir / "ledger.jsonl"
        self._lock = workdir / "locks" / "ledger"

    def lines(self) -> dict[str, Line]:
        """Cell to its line; of two the later. A line that a kill cut short counts as not there."""
        found: dict[str, Line] = {}
        if self.path.exists():
            # A line may be cut in the middle of a character.
            for text in self.path.read_text(encoding="utf-8", errors="replace").split("\n"):
                try:
                    line = json.loads(text)
                except json.JSONDecodeError:
                    continue
                found[line["cell"]] = line
        return found

    def append(self, line: Line) -> None:
        """Adds a line in one write, and waits until it is on disk."""
        text = json.dumps({"schema": SCHEMA, **line}, ensure_ascii=False, allow_nan=False) + "\n"
        with lock(self._lock):
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                end = os.lseek(descriptor, 0, os.SEEK_END)
                if end and os.pread(descriptor, 1, end - 1) != b"\n":
                    text = "\n" + text  # behind the half line of a killed process
                os.write(descriptor, text.encode("utf-8", errors="replace"))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def drop(self, cell: str) -> None:
        """Takes out the line of a cell that is to be done again."""
        with lock(self._lock):
            kept = [line for name, line in self.lines().items() if name != cell]
            texts = [json.dumps(line, ensure_ascii=False) + "\n" for line in kept]
            write_atomically(self.path, "".join(texts))
