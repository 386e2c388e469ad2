"""Logic2Text (Chen et al., 2020): a logical form over a table to the sentence that it says."""

from __future__ import annotations

from pathlib import Path

from pintern.errors import UserError
from pintern.prompts.task import Example, PromptFormat, Task, read_template
from pintern.tasks.sources import Row, take
from pintern.tasks.splits import load_splits

TEMPLATE = Path(__file__).parents[1] / "assets" / "logic2text" / "template.txt"
PUBLISHED = {"train": 8_566, "dev": 1_095, "test": 1_092}


def logic2text_task(data: str, seed: int) -> Task:
    """Title, header and linearised logical form to a sentence, judged by BLEC, and by BLEU beside.

    Args:
      data: see `sources.open_source`; the set's own files are `train.json`, `valid.json` and
        `test.json`, lists of objects with `topic`, `logic_str`, `sent`, `action`, `table_header`.
      seed: of a hold-out, where only one split is there.

    Raises:
      UserError: see `splits.load_splits`; a row without one of the fields.
    """
    train, test, note = load_splits(
        "Logic2Text", data, seed, test="test", learn=_rows, judge=_rows, sizes=PUBLISHED
    )
    return Task(
        name="logic2text",
        template=read_template(TEMPLATE),
        format=PromptFormat(
            query="{query}\nSentence:", completion=" {completion}", example_end="\n"
        ),
        train=train,
        test=test,
        metric="blec",
        further_metrics=("bleu",),
        metric_options={"tokenize": "13a"},
        note=f"{note} BLEC's word lists are pintern's own.",
    )


def _rows(row: Row, where: str) -> list[Example]:
    logic = " ".join(take(row, "logic_str", str, where).split())
    header = take(row, "table_header", list, where)
    if not all(isinstance(name, str) for name in header):
        raise UserError(f"{where}: table_header is {header!r:.60}; expected a list of texts.")
    query = (
        f"Title: {take(row, 'topic', str, where).strip()}\n"
        f"Columns: {' | '.join(header)}\n"
        f"Logical form: {logic}"
    )
    sentence = " ".join(take(row, "sent", str, where).split())
    # The kind of logic (count, superlative, …) is what the paper breaks its scores down by.
    return [Example(query, sentence, slice=row.get("action") or "", facts={"logic": logic})]
