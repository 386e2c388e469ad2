"""From rows to padded batches of few shapes, in an order that is a pure function of the step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pintern.models.shared_prefix import Batch
from pintern.prompts.rows import Row

_MULTIPLE = 8
_WINDOW = 16  # steps whose rows are sorted by length together


class Shape(NamedTuple):
    """Static shape of a batch: prefix slots, row slots, target slots."""

    prefix: int
    row: int
    target: int


def round_up(length: int, multiple: int = _MULTIPLE) -> int:
    """Smallest multiple that holds `length`; 0 stays 0."""
    return math.ceil(length / multiple) * multiple


def make_batch(prefix: Sequence[int], rows: Sequence[Row], shape: Shape) -> Batch:
    """One group: rows behind one prefix, padded on the right to `shape`."""
    prefix_tokens = np.zeros((1, shape.prefix), np.int32)
    prefix_valid = np.zeros_like(prefix_tokens)
    prefix_tokens[0, : len(prefix)] = prefix
    prefix_valid[0, : len(prefix)] = 1
    tokens = np.zeros((1, len(rows), shape.row), np.int32)
    valid = np.zeros_like(tokens)
    slots = np.zeros((1, len(rows), shape.target), np.int32)
    targets = np.zeros_like(slots)
    weights = np.zeros(slots.shape, np.float32)
    for r, row in enumerate(rows):
        tokens[0, r, : len(row.tokens)] = row.tokens
        valid[0, r, : len(row.tokens)] = 1
        wanted = row.tokens[row.start :]
        slots[0, r, : len(wanted)] = np.arange(row.start - 1, row.start - 1 + len(wanted))
        targets[0, r, : len(wanted)] = wanted
        weights[0, r, : len(wanted)] = 1.0
    return Batch(prefix_tokens, prefix_valid, tokens, valid, slots, targets, weights)


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The few shapes that a level's rows are padded to.

    Attributes:
      prefix: slots of the prefix.
      widths: row slots, rising; a batch takes the smallest that holds its longest row.
      targets: target slots.
    """

    prefix: int
    widths: tuple[int, ...]
    targets: int

    @classmethod
    def plan(cls, prefix: Sequence[int], rows: Sequence[Row], *, count: int = 2) -> Shapes:
        """Chooses `count` widths at equal shares of the rows, so that padding stays small."""
        lengths = sorted(len(row.tokens) for row in rows)
        cuts = [lengths[math.ceil(len(lengths) * (i + 1) / count) - 1] for i in range(count)]
        return cls(
            prefix=round_up(len(prefix)),
            widths=tuple(sorted({round_up(cut) for cut in cuts})),
            targets=round_up(max(len(row.tokens) - row.start for row in rows)),
        )

    def shape_for(self, rows: Sequence[Row]) -> Shape:
        """The smallest shape that holds these rows."""
        longest = max(len(row.tokens) for row in rows)
        width = next(w for w in self.widths if w >= longest)
        return Shape(self.prefix, width, self.targets)

    def all(self) -> list[Shape]:
        """Every shape that this level can need: what has to be compiled."""
        return [Shape(self.prefix, width, self.targets) for width in self.widths]


def step_indices(step: int, lengths: np.ndarray, *, rows: int, seed: int) -> np.ndarray:
    """Which examples a step trains on: a pure function of the step, the seed and the lengths.

    Examples are shuffled every epoch; within a window of steps they are sorted by length and cut
    into steps of like length, whose order is shuffled again. So padding is small, every example is
    seen once per epoch, and a resumed run needs no saved position.

    Args:
      step: optimizer step.
      lengths: `[example]` length of each example's query and completion, in tokens.
      rows: examples per step.
      seed: of the order.

    Returns:
      `[rows]` indices of examples.
    """
    window, place = divmod(step, _WINDOW)
    first = window * _WINDOW * rows
    drawn = np.empty(_WINDOW * rows, np.int64)
    filled = 0
    while filled < len(drawn):
        epoch, offset = divmod(first + filled, len(lengths))
        order = np.random.default_rng([seed, epoch, 1]).permutation(len(lengths))
        taken = order[offset : offset + len(drawn) - filled]
        drawn[filled : filled + len(taken)] = taken
        filled += len(taken)
    steps = drawn[np.argsort(lengths[drawn], kind="stable")].reshape(_WINDOW, rows)
    shuffled = np.random.default_rng([seed, window, 2]).permutation(_WINDOW)
    return steps[shuffled[place]]


def padding_share(batch: Batch) -> float:
    """Share of the batch's slots, prefix and rows, that hold padding."""
    real = batch.prefix_valid.sum() + batch.row_valid.sum()
    return 1.0 - float(real) / (batch.prefix_valid.size + batch.row_valid.size)
