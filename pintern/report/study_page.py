"""The page of a study: every task's table, the plots, the paper's figures, every answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from pintern.report import pieces
from pintern.report.table import BEST

Table = tuple[Sequence[str], Sequence[Sequence[str]], str]
"""Headings, rows, and a note below them."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One task with one model.

    Attributes:
      title: of the part.
      head: headings of its table.
      rows: cells.
      notes: about its data.
      pictures: caption to PNG.
      ladder: the template at each level, as `pieces.ladder` takes it.
      predictions: arm to answers, as `pieces.examples` takes them.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]
    pictures: Mapping[str, Path]
    ladder: Sequence[Mapping]
    predictions: Mapping[str, Sequence[Mapping]]


def write_study_page(
    path: Path | str,
    *,
    name: str,
    question: str,
    warnings: Sequence[str],
    parts: Sequence[Part],
    legend: str,
    across: Mapping[str, Table],
    papers: Mapping[str, Table],
    notes: Sequence[str],
    pictures: Mapping[str, Path],
    config: Mapping,
    changes: Mapping[str, Sequence[str]],
    command: str,
    versions: Mapping[str, str],
) -> None:
    """Writes the study's report as one file; see `pieces.write_page`.

    Args:
      path: `index.html`.
      name: of the study.
      question: what it asks.
      warnings: what isn't finished or was left out.
      parts: one for each task and model.
      legend: what the tables' columns mean.
      across: what the parts say together: title to table.
      papers: source to published figures.
      notes: below the tables.
      pictures: caption to PNG, of the study as a whole.
      config: of the first arm.
      changes: arm to the fields in which it differs from that.
      command: that made it.
      versions: library to version.

    Raises:
      UserError: see `pieces`.
    """
    sections = [pieces.paragraph(question), *(pieces.paragraph(text) for text in warnings)]
    for part in parts:
        score = list(part.head).index("score")
        best = frozenset(i for i, row in enumerate(part.rows) if row[score].endswith(BEST))
        content = pieces.table(part.head, part.rows, best)
        content += "".join(pieces.paragraph(note) for note in part.notes)
        content += pieces.plots(part.pictures) if part.pictures else ""
        sections.append(pieces.section(part.title, content))
    if parts:
        sections.append(pieces.paragraph(legend.replace("\\*", "*")))
    published = {f"Published: {source}": table for source, table in papers.items()}
    for title, (head, rows, note) in {**across, **published}.items():
        content = pieces.table(head, rows) + pieces.paragraph(note)
        sections.append(pieces.section(title, content))
    sections += [pieces.paragraph(note) for note in notes]
    if pictures:
        sections.append(pieces.section("Across tasks", pieces.plots(pictures)))
    for part in parts:
        if part.ladder:
            title = f"The template at each level: {part.title}"
            sections.append(pieces.section(title, pieces.ladder(part.ladder)))
        if part.predictions:
            title = f"Answers: {part.title}"
            sections.append(pieces.section(title, pieces.examples(part.predictions)))
    if changes:
        rows = [(arm, "; ".join(fields) or "–") for arm, fields in changes.items()]
        table = pieces.table(["arm", "what differs from the first arm's configuration"], rows)
        sections.append(pieces.section("Arms", f'<div class="wrapped">{table}</div>'))
    sections.append(pieces.section("How it was made", pieces.provenance(config, command, versions)))
    script = any(part.predictions for part in parts)
    pieces.write_page(path, f"pintern study: {name}", sections, script=script)
