"""Prompts that a user brings: one a line, or JSONL."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pintern.errors import UserError
from pintern.prompts.task import parse_records


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt.

    Attributes:
      text: as given.
      where: file and line, for messages.
      id: of a JSONL prompt that has one.
    """

    text: str
    where: str
    id: str = ""


def parse_requests(text: str, where: str | Path, *, jsonl: bool) -> list[Request]:
    """Prompts of a text: a line each, blank ones left out, or JSONL of `{"query": ...}`.

    Args:
      text: of the file.
      where: the file's name, for messages.
      jsonl: how to read it.

    Raises:
      UserError: no prompt in it, or a line that is no record.
    """
    if jsonl:
        return [
            Request(record["query"], f"{where}, line {number}", record.get("id", ""))
            for number, record in parse_records(text, where, required=("query",))
        ]
    found = [
        Request(line.removesuffix("\r"), f"{where}, line {number}")
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]
    if not found:
        raise UserError(
            f"{where} holds no prompt.", "Write one a line, or JSONL of {'query': ...}."
        )
    return found
