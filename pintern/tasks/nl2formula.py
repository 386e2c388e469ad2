"""NL2Formula (Zhao et al., 2024): a question about a spreadsheet's table to the formula for it."""

from __future__ import annotations

from pathlib import Path

from pintern.errors import UserError
from pintern.prompts.task import Example, PromptFormat, Task, read_template
from pintern.tasks.sources import Row, take
from pintern.tasks.splits import load_splits

TEMPLATE = Path(__file__).parents[1] / "assets" / "nl2formula" / "template.txt"
# Rows of data that a query shows; a formula needs to know where the table ends, not what is in it.
SHOWN_ROWS = 5


def nl2formula_task(data: str, seed: int) -> Task:
    """Question and table to a formula, judged by exact match after `normalise_formula`.

    Two layouts are read: the published one, an object for each table (`TableName`, `Table`, and
    `t5Formulas`, a list of `Question`, `Formula2`, `Level`), and a row for each question (`Table`,
    `Question`, `Formula`, `Level`). A slice is the level: easy, medium, hard or calculation.

    Args:
      data: see `sources.open_source`; the set's own files are `train.json`, `valid.json`,
        `test.json`.
      seed: of a hold-out, where only one split is there.

    Raises:
      UserError: see `splits.load_splits`; a row without one of the fields, or an empty table.
    """
    train, test, note = load_splits(
        "NL2Formula", data, seed, test="test", learn=_rows, judge=_rows, sizes={}
    )
    return Task(
        name="nl2formula",
        template=read_template(TEMPLATE),
        format=PromptFormat(
            query="{query}\nFormula:", completion=" {completion}", example_end="\n\n"
        ),
        train=train,
        test=test,
        metric="exact",
        metric_options={"normalise": "formula"},
        note=f"{note} A query shows the first {SHOWN_ROWS} rows of its table and the last.",
    )


def column_letters(index: int) -> str:
    """A, B, …, Z, AA, … for 0, 1, …, 25, 26, …"""
    letters = ""
    index += 1
    while index:
        index, letter = divmod(index - 1, 26)
        letters = chr(ord("A") + letter) + letters
    return letters


def show_table(table: list[list[object]], where: str) -> str:
    """A table with the names that formulas give its columns and rows; row 1 holds the header.

    Raises:
      UserError: no header, or a row that isn't a list.
    """
    if not table or not all(isinstance(row, list) for row in table) or not table[0]:
        raise UserError(f"{where}: Table is {table!r:.60}; expected a list of rows, header first.")
    header, *rows = table
    lines = [" | ".join(f"{column_letters(i)}: {name}" for i, name in enumerate(header))]
    numbered = list(enumerate(rows, start=2))
    shown = numbered[:SHOWN_ROWS]
    if len(numbered) > SHOWN_ROWS:
        shown.append(numbered[-1])
    lines += [f"{number} | " + " | ".join(map(str, row)) for number, row in shown]
    return "\n".join(lines)


def _rows(row: Row, where: str) -> list[Example]:
    shown = show_table(take(row, "Table", list, where), where)
    if "t5Formulas" not in row:
        return [_example(shown, row, "Formula", where)]
    return [
        _example(shown, part, "Formula2", f"{where}, formula {number}")
        for number, part in enumerate(take(row, "t5Formulas", list, where), start=1)
    ]


def _example(shown: str, row: Row, formula: str, where: str) -> Example:
    question = take(row, "Question", str, where).strip()
    return Example(
        query=f"{shown}\nQuestion: {question}",
        completion=take(row, formula, str, where).strip(),
        slice=str(row.get("Level") or "").lower(),
    )
