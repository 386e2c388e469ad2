"""Rows of a data set, wherever it lies: a hub name, a tfds folder, a folder of files, or one file.

`open_source` gives the splits that there are; reading one gives plain dicts of Python values, the
same whatever the source. What the rows mean is for each task's own file.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pintern.errors import UserError
from pintern.prompts.text import check_characters, parse_json_line, read_text
from pintern.tasks.libraries import (
    SPLIT_NAMES,
    WHOLE,
    Reader,
    Row,
    open_hub,
    open_saved,
    open_tfds,
    read_parquet,
)

_HUB_NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*(:[\w.-]+)?")
_TFDS = "features.json"  # of every folder that tensorflow-datasets prepares
_SAVED = ("dataset_dict.json", "state.json")  # of every folder that `datasets` saves


def open_source(
    where: str, *, readers: Mapping[str, Callable[[Path], list[Row]]] | None = None
) -> dict[str, Reader]:
    """The splits of a source, each as a function that reads its rows.

    Args:
      where: one of
        a file `.jsonl`, `.json` (a list of objects), `.csv`, `.tsv` or `.parquet`, whose split is
        `train`, `dev` or `test` if its name says so, else `all`;
        a folder of such files, one for each split;
        a folder that tensorflow-datasets prepared as array_record (TensorFlow isn't needed);
        a folder that `datasets` saved with `save_to_disk`;
        `org/name` or `org/name:config`, a data set on the Hugging Face hub.
      readers: what else a task can read, by file ending (`.xml`).

    Returns:
      `train`, `dev`, `test` (or as the source calls them, if otherwise) to readers. Nested values
      are lists and dicts, texts are str.

    Raises:
      UserError: there is no such source, it can't be read, or it holds no rows.
    """
    if not where:
        raise UserError(
            "config.task.data is empty; this task's data are not part of the project.",
            "Pass --config.task.data=: a file, a folder with a file for each split, a folder that "
            "tensorflow-datasets prepared, or org/name on the hub.",
        )
    path = Path(where)
    known = {**_FILES, **(readers or {})}
    if path.is_file():
        if path.suffix not in known:
            raise UserError(
                f"config.task.data={where}: files of kind {path.suffix or '(none)'} can't be read.",
                f"Known: {', '.join(sorted(known))}.",
            )
        return {_split_of(path): _checked(known[path.suffix], path)}
    if path.is_dir():
        if any((path / name).is_file() for name in _SAVED):
            return open_saved(path)
        prepared = _prepared(path)
        return open_tfds(prepared) if prepared else _open_folder(path, known)
    if path.suffix not in known and not path.is_absolute() and _HUB_NAME.fullmatch(where):
        return open_hub(where)
    raise UserError(
        f"config.task.data={where}: there is no such file or folder.",
        "Give a file, a folder, or org/name[:config] on the hub.",
    )


def take(row: Row, name: str, kind: type, where: str) -> Any:
    """A field of a row, checked.

    Args:
      row: as a reader gave it.
      name: of the field.
      kind: of its value; str also has to hold more than white space.
      where: file or split and number, for messages.

    Raises:
      UserError: missing, of another kind, or empty text; a row that is no object.
    """
    if not isinstance(row, dict):
        raise UserError(f"{where}: {row!r:.60} is not an object with a field {name!r}.")
    if name not in row or row[name] is None:
        raise UserError(
            f"{where}: field {name!r} is missing.", f"There are: {', '.join(map(str, row))}."
        )
    value = row[name]
    if not isinstance(value, kind):
        shown = repr(value)
        shown = shown if len(shown) < 60 else shown[:59] + "…"
        # A union of kinds has no name of its own.
        raise UserError(f"{where}: {name} is {shown}; expected {getattr(kind, '__name__', kind)}.")
    if kind is str and not value.strip():
        raise UserError(f"{where}: {name} is empty.")
    return value


def objects(value: Any) -> list[Any]:
    """A list of objects, from that or from an object of lists.

    tensorflow-datasets and older sets on the hub store `[{a: 1}, {a: 2}]` as `{a: [1, 2]}`, at any
    depth.
    """
    if not isinstance(value, dict):
        return list(value)
    length = max((len(column) for column in value.values()), default=0)
    rows = [{name: column[i] for name, column in value.items()} for i in range(length)]
    # One level deeper the columns are still lists, of lists of objects.
    if rows and all(isinstance(cell, list) for cell in rows[0].values()):
        return [objects(row) for row in rows]
    return rows


def read_json(path: Path) -> list[Row]:
    """Rows of a JSON file that is a list of objects.

    Raises:
      UserError: it can't be read, or is something else.
    """
    text = read_text(path)
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {error.lineno}: not JSON ({error.msg} at column {error.colno}).",
            "The file should be one list of objects; for one object a line, call it .jsonl.",
        ) from error
    except RecursionError:
        raise UserError(f"{path}: brackets are nested too deep to be read.") from None
    except ValueError as error:  # of a number with thousands of digits
        raise UserError(f"{path}: not read ({error}).") from error
    if not isinstance(rows, list):
        raise UserError(f"{path} is not a list of objects.", "Expected [{...}, {...}].")
    check_characters(rows, text, path)
    return rows


def read_jsonl(path: Path) -> list[Row]:
    """Rows of a file with a JSON object on each line.

    Raises:
      UserError: likewise; names the line.
    """
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            rows.append(parse_json_line(line, f"{path}, line {number}"))
    return rows


def _read_table(path: Path, delimiter: str) -> list[Row]:
    # Not `datasets`, whose reader guesses types: here `007` stays text.
    # `newline=""`: characters inside a field that Python takes for line ends are none.
    lines = csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter=delimiter)
    rows = []
    try:
        for row in lines:
            if None in row or None in row.values():
                raise UserError(
                    f"{path}, line {lines.line_num}: it has another number of columns than the "
                    f"{len(lines.fieldnames or ())} that the first line names.",
                    "Quote fields that hold the delimiter.",
                )
            rows.append(dict(row))
    except csv.Error as error:  # of a field that goes on and on
        raise UserError(
            f"{path}, line {lines.line_num}: not read ({error}).",
            "Is a quote left open? Fields as long as that can be read from JSONL.",
        ) from error
    names = [name for name in lines.fieldnames or () if name]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path} names two columns {twice!r}.", "Give each a name of its own.")
    return rows


_FILES: dict[str, Callable[[Path], list[Row]]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": functools.partial(_read_table, delimiter=","),
    ".tsv": functools.partial(_read_table, delimiter="\t"),
    ".parquet": read_parquet,
}


def _checked(read: Callable[[Path], list[Row]], path: Path) -> Reader:
    def checked() -> list[Row]:
        rows = read(path)
        if not rows:
            raise UserError(f"{path} holds no rows.", "Give the file of a split that isn't empty.")
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, dict):
                raise UserError(f"{path}, row {number} is {row!r:.60}; expected an object.")
        return rows

    return checked


def _split_of(path: Path) -> str:
    words = re.split(r"[^a-z]+", path.stem.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), WHOLE)


def _open_folder(folder: Path, known: Mapping[str, Any]) -> dict[str, Reader]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        split = _split_of(path)
        if path.suffix not in known or split == WHOLE or not path.is_file():
            continue
        if split in found:
            raise UserError(
                f"{folder} has two files of split {split}: {found[split].name} and {path.name}.",
                "Leave one for each split.",
            )
        found[split] = path
    if not found:
        raise UserError(
            f"{folder} holds no file of a split, and tensorflow-datasets didn't prepare it (no "
            f"{_TFDS}).",
            f"Expected train, dev or test in their names, and one of {', '.join(sorted(known))}.",
        )
    return {split: _checked(known[path.suffix], path) for split, path in found.items()}


def _prepared(folder: Path) -> Path | None:
    """The folder of one version that tfds prepared: this one, or the only one below it."""
    if (folder / _TFDS).is_file():
        return folder
    below = sorted(path.parent for path in folder.glob(f"*/{_TFDS}"))
    if len(below) > 1:
        raise UserError(
            f"{folder} holds {len(below)} prepared versions: {', '.join(p.name for p in below)}.",
            "Name one of the folders.",
        )
    return below[0] if below else None
