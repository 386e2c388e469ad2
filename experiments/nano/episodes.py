"""Pre-training batches: many schemas a step, few rows each, harder as the model gets better."""

import random
from typing import NamedTuple

import numpy as np

from experiments.nano.questions import Question, random_question
from experiments.nano.schema import RULES, Schema, random_schema, render_template
from pintern.models.shared_prefix import Batch
from pintern.prompts.tokens import PieceTokenizer

QUERY = "Question: {query}\nSQL:"
RECALL = " {query}"
COMPLETION = " {completion}"
EXAMPLE_END = "\n"


class Difficulty(NamedTuple):
    """Size of the schemas of one batch, questions per row, and the shapes that hold them."""

    tables: int
    columns: int
    groups: int
    prefix_slots: int
    pairs: int
    row_slots: int
    target_slots: int
    extras: bool = True
    recall: bool = False
    rules: bool = False


LADDER = (
    Difficulty(1, 2, 64, 32, 8, 16, 8, extras=False, recall=True),
    Difficulty(4, 2, 40, 96, 12, 24, 12, extras=False, recall=True),
    Difficulty(4, 2, 40, 96, 1, 48, 32, extras=False),
    Difficulty(5, 3, 32, 136, 2, 80, 56, extras=False),
    Difficulty(4, 5, 20, 208, 2, 80, 56),
    Difficulty(5, 6, 16, 272, 2, 80, 56),
    Difficulty(5, 9, 10, 496, 3, 112, 80, rules=True),
)
ROWS = 2
RECALL_SHARE = 0.25
RECALL_PAIRS = 10


def _recalls(schema: Schema, rng: random.Random, pairs: int) -> list[Question]:
    """Bare look-ups, word then code: the skill on its own, with a target at every other token.

    Where there are metrics, every other look-up is of a formula.
    """
    glossary = [(c.word, c.code) for table in schema.tables for c in table.columns]
    glossary += [(table.word, table.code) for table in schema.tables]
    formulas = [metric for table in schema.tables for metric in table.metrics]
    drawn = [
        rng.choice(formulas if formulas and rng.random() < 0.5 else glossary) for _ in range(pairs)
    ]
    return [Question(word, code, "recall", frozenset()) for word, code in drawn]


def _rules(rng: random.Random) -> tuple[str, ...]:
    """Half of the time all rules, else some, in any order."""
    return tuple(rng.sample(RULES, min(len(RULES), rng.randint(0, 2 * len(RULES)))))


def _row(schema: Schema, rng: random.Random, level: Difficulty) -> list[Question]:
    """Questions of one row: half of the rows keep to one table, as retrieved examples would.

    Where there are metrics, some rows hold look-ups still: their formulas are learned by them.
    """
    table = rng.choice(schema.tables) if rng.random() < 0.5 else None
    if level.recall:
        return _recalls(schema, rng, level.pairs)
    if level.extras and rng.random() < RECALL_SHARE:
        return _recalls(schema, rng, RECALL_PAIRS)
    return [random_question(schema, rng, table=table) for _ in range(rng.randint(1, level.pairs))]


def make_batch(tokenizer: PieceTokenizer, rng: random.Random, level: Difficulty) -> Batch:
    """One step's groups, padded to the level's shapes; what doesn't fit is drawn again."""
    shape = (level.groups, ROWS, level.row_slots)
    prefix = np.zeros((level.groups, level.prefix_slots), np.int32)
    prefix_valid = np.zeros_like(prefix)
    rows, rows_valid = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    slots = np.zeros((level.groups, ROWS, level.target_slots), np.int32)
    targets, weights = np.zeros_like(slots), np.zeros(slots.shape, np.float32)
    group = 0
    while group < level.groups:
        schema = random_schema(rng, level.tables, level.columns, extras=level.extras)
        questions = [_row(schema, rng, level) for _ in range(ROWS)]
        pieces = [render_template(schema, rng, rules=_rules(rng) if level.rules else ())]
        for row in questions:
            for question in row:
                pieces += [
                    (RECALL if question.kind == "recall" else QUERY).format(query=question.query),
                    COMPLETION.format(completion=question.sql),
                ]
        ids = iter(tokenizer.encode_many(pieces))
        head = [*tokenizer.bos, *next(ids)]
        if len(head) > level.prefix_slots:
            continue
        prefix[group, : len(head)] = head
        prefix_valid[group, : len(head)] = 1
        newline = tokenizer.encode(EXAMPLE_END)
        for r, row in enumerate(questions):
            tokens: list[int] = []
            predicted: list[tuple[int, int]] = []
            for i, _ in enumerate(row):
                tokens += next(ids)
                completion = next(ids)
                last, recall = i == len(row) - 1, row[i].kind == "recall"
                wanted = [*completion, tokenizer.eos] if last and not recall else completion
                predicted += [(len(tokens) - 1 + j, token) for j, token in enumerate(wanted)]
                tokens += completion + ([] if last or recall else newline)
            predicted = [p for p in predicted if p[0] < level.row_slots][: level.target_slots]
            tokens = tokens[: level.row_slots]
            rows[group, r, : len(tokens)] = tokens
            rows_valid[group, r, : len(tokens)] = 1
            n = len(predicted)
            slots[group, r, :n], targets[group, r, :n] = np.transpose(predicted)
            weights[group, r, :n] = 1
        group += 1
    # A list of targets for each row.
    of_row = np.zeros_like(slots)
    return Batch(prefix, prefix_valid, rows, rows_valid, of_row, slots, targets, weights)
