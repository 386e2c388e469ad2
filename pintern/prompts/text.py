"""Text and lines of JSON as they lie in files; what can't be read is told by file and line."""

import json
import re
from pathlib import Path
from typing import Any

from pintern.errors import UserError

_SURROGATE = re.compile("[\ud800-\udfff]")


def read_text(path: str | Path) -> str:
    """Text of a UTF-8 file, line ends as they are, without the mark that some editors set.

    Raises:
      UserError: missing, or not UTF-8.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise UserError(
            f"{path} can't be read: {error.strerror or error}.", "Give the path of a text file."
        ) from error
    return decode_text(raw, path)


def decode_text(raw: bytes, where: str | Path) -> str:
    """Text of UTF-8, without the mark that some editors set.

    Args:
      raw: what a file holds.
      where: the file's name, for messages.

    Raises:
      UserError: names the line that isn't UTF-8.
    """
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{where}, line {line}: not UTF-8 (byte {error.start}).", "Save it as UTF-8."
        ) from error


def parse_json_line(line: str, where: str) -> Any:
    """What a line of JSONL says.

    Raises:
      UserError: it is not JSON, or holds half of a character.
    """
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}: not JSON ({error.msg} at column {error.colno}).",
            "Each line should be one JSON object.",
        ) from error
    except RecursionError:
        raise UserError(f"{where}: brackets are nested too deep to be read.") from None
    except ValueError as error:  # of a number with thousands of digits
        raise UserError(f"{where}: not read ({error}).") from error
    check_characters(value, line, where)
    return value


def check_characters(value: Any, text: str, where: str | Path) -> None:
    r"""Refuses half of a character: a UTF-16 surrogate such as \ud83d without its partner.

    Args:
      value: what JSON said.
      text: in what words.
      where: file and line, for messages.
    """
    found = _SURROGATE.search(json.dumps(value, ensure_ascii=False)) if "\\u" in text else None
    if found:
        raise UserError(
            f"{where}: \\u{ord(found[0]):04x} is half of a character; its other half is missing.",
            "Such texts come of a log that was cut in UTF-16. Mend it, or leave it out.",
        )
