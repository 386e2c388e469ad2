"""MTOP (Li et al., 2021): an utterance to the logical form of its intents and slots."""

from __future__ import annotations

from pathlib import Path

from pintern.prompts.task import Example, PromptFormat, Task, read_template
from pintern.tasks.sources import Row, take
from pintern.tasks.splits import load_splits

TEMPLATE = Path(__file__).parents[1] / "assets" / "mtop" / "template.txt"
PUBLISHED = {"train": 15_667, "dev": 2_235, "test": 4_386}  # English


def mtop_task(data: str, seed: int) -> Task:
    """Rows of `utterance` and `logical_form`, judged by exact match (2302.11521, section 3).

    White space counts only as a separator, and brackets separate by themselves.

    Args:
      data: see `sources.open_source`.
      seed: of a hold-out, where only one split is there.

    Raises:
      UserError: see `splits.load_splits`; a row without one of the fields.
    """
    train, test, note = load_splits(
        "MTOP", data, seed, test="test", learn=_rows, judge=_rows, sizes=PUBLISHED
    )
    return Task(
        name="mtop",
        template=read_template(TEMPLATE),
        format=PromptFormat(
            query="Utterance: {query}\nLogical form:", completion=" {completion}", example_end="\n"
        ),
        train=train,
        test=test,
        metric="exact",
        metric_options={"normalise": "brackets"},
        note=note,
    )


def _rows(row: Row, where: str) -> list[Example]:
    utterance = take(row, "utterance", str, where).strip()
    form = " ".join(take(row, "logical_form", str, where).split())
    return [Example(query=utterance, completion=form)]
