"""ToTTo (Parikh et al., 2020): highlighted cells of a table to one sentence."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

from pintern.errors import UserError
from pintern.prompts.task import Example, PromptFormat, Task, read_template
from pintern.tasks.sources import Row, objects, take
from pintern.tasks.splits import load_splits

TEMPLATE = Path(__file__).parents[1] / "assets" / "totto" / "template.txt"
PUBLISHED = {"train": 120_761, "dev": 7_700}


def totto_task(data: str, seed: int) -> Task:
    """Highlighted cells with their titles and headers to a sentence, judged by BLEU.

    The query is the paper's subtable: page and section title, then every highlighted cell with the
    headers above it and to its left. The dev split is judged on: the test split's sentences are
    kept by its authors. BLEU is of lower-cased text, as in their script; chrF is of the text as is.

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
        metric_options={"tokenize": "13a", "lowercase": True},
        note=note,
    )


def linearise(row: Row, where: str) -> str:
    """The paper's linearised subtable (section 6): highlighted cells with heuristic headers.

    Headers of a cell are the header cells above that share a column with it, and those before it in
    its own row. Columns are counted by `column_span` alone, as the paper's code does: below a cell
    that spans rows the header found can be the neighbour's.

    Raises:
      UserError: a field is missing, or a highlighted cell isn't in the table.
    """
    table = [objects(cells) for cells in objects(take(row, "table", list | dict, where))]
    parts = [_tagged("page_title", take(row, "table_page_title", str, where))]
    if row.get("table_section_title"):
        parts.append(_tagged("section_title", take(row, "table_section_title", str, where)))
    cells = []
    for place in take(row, "highlighted_cells", list, where):
        match place:
            case [int(number), int(index)] if 0 <= number < len(table) and 0 <= index < len(
                table[number]
            ):
                cells.append(_cell(table, number, index, where))
            case _:
                raise UserError(
                    f"{where}: highlighted cell {place} isn't in the table.",
                    "A highlighted cell is [row, cell of the row], both from 0.",
                )
    if not cells:
        raise UserError(f"{where}: highlighted_cells is empty.", "At least one cell is needed.")
    return " ".join([*parts, _tagged("table", " ".join(cells))])


def _cell(table: list[list[dict[str, Any]]], number: int, index: int, where: str) -> str:
    own = _columns(table[number], where)[index]
    headers = [
        ("col_header", cell)
        for cells in table[:number]
        for cell, columns in zip(cells, _columns(cells, where), strict=True)
        if columns.start < own.stop and own.start < columns.stop
    ]
    headers += [("row_header", cell) for cell in table[number][:index]]
    said = [_tagged(name, _value(cell, where)) for name, cell in headers if cell.get("is_header")]
    return _tagged("cell", " ".join([_value(table[number][index], where), *said]))


def _value(cell: dict[str, Any], where: str) -> str:
    """A cell's text, which may be empty."""
    return cell["value"] if cell.get("value") == "" else take(cell, "value", str, where)


def _columns(cells: list[dict[str, Any]], where: str) -> list[range]:
    """The columns that each cell of a row covers."""
    ends = list(itertools.accumulate(take(cell, "column_span", int, where) for cell in cells))
    return [range(start, end) for start, end in itertools.pairwise([0, *ends])]


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
