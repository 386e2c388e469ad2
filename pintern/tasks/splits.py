"""Which rows are learned from and which are judged by, when not every split is at hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pintern.errors import UserError
from pintern.prompts.task import Example, split_examples
from pintern.tasks.sources import Reader, Row, open_source

HELD_OUT = 0.2


def load_splits(
    name: str,
    where: str,
    seed: int,
    *,
    test: str,
    learn: Callable[[Row, str], Sequence[Example]],
    judge: Callable[[Row, str], Sequence[Example]],
    sizes: Mapping[str, int],
    readers: Mapping[str, Callable[[Path], list[Row]]] | None = None,
) -> tuple[tuple[Example, ...], tuple[Example, ...], str]:
    """Train and test examples of a public set, and whose split they are.

    The split is the papers' if the source has it. Otherwise: what takes the place of `train` is the
    papers' test split, judged on the other one; what takes the place of a missing test split is
    `dev` or `test`, whichever there is; and of a source with one such split a fifth of the distinct
    queries is held out by the seed. The note says which.

    Args:
      name: of the set, for the note.
      where: see `open_source`.
      seed: of a hold-out.
      test: the split that the papers report on, `test` or `dev`.
      learn: a row and where it stands to its training examples.
      judge: the same to the examples it is judged by.
      sizes: rows of the published splits, as far as known; the note tells a source that has others.
      readers: see `open_source`.

    Returns:
      train, test, note. Ids are `<split>-<row>`, with a further number if a row gives several.

    Raises:
      UserError: see `open_source`; a row that `learn` or `judge` refuses.
    """
    found = open_source(where, readers=readers)
    other = {"test": "dev", "dev": "test"}[test]
    if "train" in found:
        judged = next((split for split in (test, other) if split in found), None)
        learned = "train"
    elif test in found and other in found:
        # Of the two the larger is as a rule the papers' test split; dev was never trained on.
        learned, judged = "test", "dev"
    else:
        learned = next((split for split in (test, other) if split in found), next(iter(found)))
        judged = None
    if judged is None:
        train, tests, rows, whose = _hold_out(where, seed, learned, found, learn, judge)
    else:
        train, learned_rows = _examples(found[learned], where, learned, learn)
        tests, judged_rows = _examples(found[judged], where, judged, judge)
        rows = {learned: learned_rows, judged: judged_rows}
        whose = "the papers' split"
        if (learned, judged) != ("train", test):
            missing = " and ".join(split for split in ("train", test) if split not in found)
            whose = f"a substitute split, because {where} has no {missing}"
        whose += f": trained on {learned}, judged on {judged}"
    parts = [
        f"{split} has {count:,} of the published {sizes[split]:,} rows"
        for split, count in rows.items()
        if sizes.get(split, count) != count
    ]
    queries = {example.query for example in train}
    shared = sum(example.query in queries for example in tests)
    if shared:
        parts.append(f"test queries that the source has in train as well: {shared:,}")
    if parts or not whose.startswith("the papers'"):
        parts.append("not comparable with published figures")
    note = "; ".join([f"{name}: {whose}", *parts])
    return train, tests, f"{note}. Train {len(train):,}, test {len(tests):,} examples."


def _hold_out(
    where: str,
    seed: int,
    split: str,
    found: Mapping[str, Reader],
    learn: Callable[[Row, str], Sequence[Example]],
    judge: Callable[[Row, str], Sequence[Example]],
) -> tuple[tuple[Example, ...], tuple[Example, ...], dict[str, int], str]:
    examples, rows = _examples(found[split], where, split, learn)
    train, held = split_examples(examples, HELD_OUT, seed, where)
    queries = {example.query for example in held}
    judged, _ = _examples(found[split], where, split, judge)
    tests = tuple(example for example in judged if example.query in queries)
    whose = (
        f"a substitute split, because {where} has only {', '.join(found)}: a fifth of the distinct "
        f"queries of {split} held out (seed {seed})"
    )
    return train, tests, {split: rows}, whose


def _examples(
    read: Reader, where: str, split: str, make: Callable[[Row, str], Sequence[Example]]
) -> tuple[tuple[Example, ...], int]:
    rows = read()
    examples = []
    for number, row in enumerate(rows, start=1):
        made = make(row, f"{where}, split {split}, row {number}")
        for part, example in enumerate(made, start=1):
            identity = f"{split}-{number}" if len(made) == 1 else f"{split}-{number}-{part}"
            examples.append(dataclasses.replace(example, id=example.id or identity))
    if not examples:
        raise UserError(f"{where}, split {split} gives no examples.")
    return tuple(examples), len(rows)
