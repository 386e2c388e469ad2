"""ToTTo (Parikh et al., 2020): highlighted cells of a table to one sentence."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from pintern.errors import UserError
from pintern.prompts.task import Example, PromptFormat, Task, read_template
from pintern.tasks.sources import Row, objects, take
from pintern.tasks.splits import load_splits

TEMPLATE = Path(__file__).parents[1] / "assets" / "totto" / "template.txt"
PUBLISHED = {"train": 120_761, "dev": 7_700}


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell on the table's grid.

    Attributes:
      value: its text.
      is_header: of a row or a column.
      rows: those that it covers.
      columns: those that it covers.
    """

    value: str
    is_header: bool
    rows: range
    columns: range


def totto_task(data: str, seed: int) -> Task:
    """Highlighted cells with their titles and headers to a sentence, judged by BLEU.

    The query is the paper's subtable: page and section title, then every highlighted cell with the
    headers above it and to its left. The dev split is judged on: the test split's sentences are
    kept by its authors.

    Args:
      data: see `sources.open_source`. Of tensorflow-datasets, `gem/totto`.
      seed: of a hold-out, where only one split is there.

    Raises:
      UserError: see `splits.load_splits`; a row without one of the fields, or a highlighted cell
        that isn't in the table.
    """
    train, test, note = load_splits(
        "ToTTo", data, seed, test="dev", learn=_learn, judge=_judge, sizes=PUBLISHED
    )
    return Task(
        name="totto",
        template=read_template(TEMPLATE),
        format=PromptFormat(
            query="Table: {query}\nSentence:", completion=" {completion}", example_end="\n"
        ),
        train=train,
        test=test,
        metric="bleu",
        further_metrics=("chrf",),
        metric_options={"tokenize": "13a"},
        note=note,
    )


def place_cells(table: list[list[dict[str, Any]]], where: str) -> list[list[Cell]]:
    """The table's cells, row by row as given, each with the rows and columns that it covers.

    A cell that spans rows pushes those of the rows below to the right.
    """
    taken: set[tuple[int, int]] = set()
    placed = []
    for number, row in enumerate(table):
        column, cells = 0, []
        for cell in objects(row):
            while (number, column) in taken:
                column += 1
            width = max(int(take(cell, "column_span", int, where)), 1)
            height = max(int(take(cell, "row_span", int, where)), 1)
            value = " ".join(str(cell.get("value", "")).split())
            rows, columns = range(number, number + height), range(column, column + width)
            taken |= {(r, c) for r in rows for c in columns}
            cells.append(Cell(value, bool(take(cell, "is_header", int, where)), rows, columns))
            column += width
        placed.append(cells)
    return placed


def linearise(row: Row, where: str) -> str:
    """The paper's linearised subtable of the highlighted cells, with heuristic headers."""
    table = place_cells(objects(take(row, "table", list | dict, where)), where)
    parts = [_tagged("page_title", take(row, "table_page_title", str, where))]
    if row.get("table_section_title"):
        parts.append(_tagged("section_title", row["table_section_title"]))
    cells = []
    for place in take(row, "highlighted_cells", list, where):
        number, index = place
        if not (0 <= number < len(table) and 0 <= index < len(table[number])):
            raise UserError(
                f"{where}: highlighted cell {list(place)} isn't in the table.",
                "A highlighted cell is [row, cell of the row], both from 0.",
            )
        cells.append(_cell(table, table[number][index]))
    if not cells:
        raise UserError(f"{where}: highlighted_cells is empty.", "At least one cell is needed.")
    return " ".join([*parts, _tagged("table", " ".join(cells))])


def _cell(table: list[list[Cell]], cell: Cell) -> str:
    every = [other for row in table for other in row if other.is_header and other is not cell]
    above = [
        other.value
        for other in every
        if other.rows.stop <= cell.rows.start and _overlap(other.columns, cell.columns)
    ]
    left = [
        other.value
        for other in every
        if other.columns.stop <= cell.columns.start and _overlap(other.rows, cell.rows)
    ]
    inside = [cell.value]
    inside += [_tagged("col_header", value) for value in dict.fromkeys(above)]
    inside += [_tagged("row_header", value) for value in dict.fromkeys(left)]
    return _tagged("cell", " ".join(inside))


def _overlap(a: range, b: range) -> bool:
    return a.start < b.stop and b.start < a.stop


def _tagged(name: str, text: str) -> str:
    return f"<{name}> {' '.join(text.split())} </{name}>"


def _learn(row: Row, where: str) -> list[Example]:
    (example,) = _judge(row, where)
    return [dataclasses.replace(example, references=())]


def _judge(row: Row, where: str) -> list[Example]:
    if "sentence_annotations" in row:
        annotations = objects(take(row, "sentence_annotations", list | dict, where))
        sentences = [take(annotation, "final_sentence", str, where) for annotation in annotations]
    else:
        sentences = [take(row, "target", str, where)]
    sentences = list(dict.fromkeys(" ".join(sentence.split()) for sentence in sentences))
    if not sentences:
        raise UserError(
            f"{where} has no sentence.", "ToTTo's test split has none: judge on the dev split."
        )
    # Those of dev whose table header is also in train are its easier half.
    known = row.get("overlap_subset")
    known = known.lower() == "true" if isinstance(known, str) and known else known
    part = {True: "overlap", False: "non-overlap"}.get(known, "")
    query = linearise(row, where)
    return [Example(query, sentences[0], slice=part, references=tuple(sentences))]
