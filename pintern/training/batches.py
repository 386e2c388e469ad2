"""From rows to padded batches of few shapes, in an order that is a pure function of the step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from pintern.models.shared_prefix import Batch
from pintern.prompts.rows import Row

_MULTIPLE = 8
_WINDOW = 64  # steps whose rows are sorted by length together
_MOST = 10  # row widths of a level, each a program to compile
_STEPS_A_WIDTH = 60  # of a level, from three widths on
_PADDING = 0.08  # share of slots that is worth no further width
_SLACK = 0.03  # likewise, above what the most widths would leave


class Shape(NamedTuple):
    """Static shape of a batch: slots of the prefix, of a row, and for the targets of a lane."""

    prefix: int
    row: int
    target: int


def round_up(length: int, multiple: int = _MULTIPLE) -> int:
    """Smallest multiple that holds `length`; 0 stays 0."""
    return math.ceil(length / multiple) * multiple


def make_batch(
    prefix: Sequence[int], rows: Sequence[Row], shape: Shape, *, lane_rows: int = 1
) -> Batch:
    """One group: rows behind one prefix, padded on the right to `shape`.

    Args:
      prefix: ids.
      rows: a multiple of `lane_rows`.
      shape: holds them.
      lane_rows: rows whose targets stand in one list.
    """
    prefix_tokens = np.zeros((1, shape.prefix), np.int32)
    prefix_valid = np.zeros_like(prefix_tokens)
    prefix_tokens[0, : len(prefix)] = prefix
    prefix_valid[0, : len(prefix)] = 1
    tokens = np.zeros((1, len(rows), shape.row), np.int32)
    valid = np.zeros_like(tokens)
    of_row = np.zeros((1, len(rows) // lane_rows, shape.target), np.int32)
    slots, targets = np.zeros_like(of_row), np.zeros_like(of_row)
    weights = np.zeros(of_row.shape, np.float32)
    filled = 0
    for r, row in enumerate(rows):
        tokens[0, r, : len(row.read)] = row.read
        valid[0, r, : len(row.read)] = 1
        lane, place = divmod(r, lane_rows)
        start = filled if place else 0
        filled = start + len(row.tokens) - row.start
        here = (0, lane, slice(start, filled))
        of_row[here] = place
        slots[here] = np.arange(row.start, len(row.tokens)) - 1
        targets[here] = row.tokens[row.start :]
        weights[here] = 1.0
    return Batch(prefix_tokens, prefix_valid, tokens, valid, of_row, slots, targets, weights)


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The few shapes that a level's rows are padded to.

    Attributes:
      rising: the shapes, narrowest rows first; a batch takes the first that holds its longest row
        and the targets of each of its lanes. The last one holds any.
      lane_rows: rows of a lane.
    """

    rising: tuple[Shape, ...]
    lane_rows: int = 1

    @classmethod
    def plan(
        cls,
        prefix: Sequence[int],
        rows: Sequence[Row],
        steps: Sequence[Sequence[int]] = (),
        *,
        most: int = _MOST,
        padding: float = _PADDING,
        slack: float = _SLACK,
        lane_rows: int = 1,
    ) -> Shapes:
        """As few widths as keep padding below a share, each where it saves most.

        Each width is a program to compile. Behind a long prefix one or two will do; rows that stand
        alone need more.

        Args:
          prefix: of the level.
          rows: every row that may be met.
          steps: rows' indices, step by step, as training will meet them; a sample is enough.
            Without any there is one shape, which holds every row.
          most: widths at most.
          padding: share of the steps' slots, prefix and rows, that may be padding.
          slack: share of slots above those of `most` widths that is worth no further width: where
            padding comes of unlike rows in one step, widths don't help.
          lane_rows: rows of a lane; the rows of a step are a multiple of it.
        """
        lengths = np.array([len(row.read) for row in rows])
        completions = np.array([len(row.tokens) - row.start for row in rows])
        widest = round_up(int(lengths.max()))
        widths = [widest]
        if len(steps):
            # Every step has as many rows: a step's slots are these times its width.
            count = len(steps[0])
            longest = np.array([lengths[list(step)].max() for step in steps])
            fixed = len(steps) * round_up(len(prefix))
            real = len(steps) * len(prefix) + sum(lengths[list(step)].sum() for step in steps)
            found = [
                (chosen, fixed + count * slots)
                for chosen, slots in _best_widths(longest, widest, most)
            ]
            enough = max(real / (1 - padding), (1 + slack) * found[-1][1])
            widths = next(chosen for chosen, slots in found if slots <= enough)
        # The widest holds any rows; for the narrower ones what their planned steps need will do.
        targets = [lane_rows * int(completions[lengths <= width].max()) for width in widths]
        if len(widths) > 1:
            taken = np.searchsorted(widths, longest)
            needed = np.array([_most_targets(completions[list(s)], lane_rows) for s in steps])
            targets[:-1] = [int(needed[taken == i].max()) for i in range(len(widths) - 1)]
        return cls(
            tuple(
                Shape(round_up(len(prefix)), width, round_up(target))
                for width, target in zip(widths, targets, strict=True)
            ),
            lane_rows,
        )

    def shape_for(self, rows: Sequence[Row]) -> Shape:
        """The smallest shape that holds these rows."""
        longest = max(len(row.read) for row in rows)
        completions = np.array([len(row.tokens) - row.start for row in rows])
        targets = _most_targets(completions, self.lane_rows)
        return next(s for s in self.rising if s.row >= longest and s.target >= targets)


def _most_targets(completions: np.ndarray, lane_rows: int) -> int:
    """Targets of the fullest lane, from the `[row]` lengths of a step's completions."""
    return int(completions.reshape(-1, lane_rows).sum(axis=1).max())


def widths_of_level(steps: int) -> int:
    """How many row widths a level of so many steps is worth: compiling one takes seconds."""
    return min(_MOST, max(2, steps // _STEPS_A_WIDTH))


def _best_widths(longest: np.ndarray, widest: int, most: int) -> Iterator[tuple[list[int], int]]:
    """For 1, 2, … widths: those with the fewest slots in sum over the steps, and that sum.

    Args:
      longest: `[step]` length of each step's longest row.
      widest: must be among them.
      most: widths at most.
    """
    rounded = np.ceil(longest / _MULTIPLE).astype(int) * _MULTIPLE
    widths = np.union1d(rounded, [widest])
    # How many steps need no more than each width; a stretch of widths costs what its last one does.
    below = np.concatenate([[0], np.cumsum([(rounded == width).sum() for width in widths])])
    sums = np.concatenate([[0.0], np.full(len(widths), np.inf)])
    starts: list[np.ndarray] = []
    for _ in range(min(most, len(widths))):
        costs = sums[None, :-1] + (below[1:, None] - below[None, :-1]) * widths[:, None]
        costs = np.where(np.tri(len(widths), dtype=bool), costs, np.inf)
        starts.append(costs.argmin(axis=1))
        sums = np.concatenate([[0.0], costs.min(axis=1)])
        chosen, end = [], len(widths) - 1
        for start in reversed(starts):
            chosen.append(int(widths[end]))
            end = start[end] - 1
            if end < 0:
                break
        yield chosen[::-1], int(sums[-1])


def step_indices(
    step: int,
    lengths: np.ndarray,
    *,
    rows: int,
    seed: int,
    stretch: range | None = None,
) -> np.ndarray:
    """Which examples a step trains on: a pure function of the arguments.

    Examples are shuffled every epoch; within a window of steps they are sorted by length and cut
    into steps of like length, whose order is shuffled again. So padding is small, every example is
    seen once per epoch, and a resumed run needs no saved position.

    Args:
      step: optimizer step.
      lengths: `[example]` length of each example's row, in tokens.
      rows: examples per step.
      seed: of the order.
      stretch: of steps that have these lengths; no window reaches beyond it, so that none is
        sorted by two lengths. All steps if not given.

    Returns:
      `[rows]` indices of examples.
    """
    start = stretch.start if stretch else 0
    first = step - (step - start) % _WINDOW
    count = min(_WINDOW, stretch.stop - first) if stretch else _WINDOW
    return _window(first, count, lengths, rows, seed)[step - first]


def first_steps(count: int, lengths: np.ndarray, *, rows: int, seed: int) -> np.ndarray:
    """`[step, rows]` indices of the first steps, each as `step_indices` gives it."""
    starts = range(0, count, _WINDOW)
    windows = [_window(first, _WINDOW, lengths, rows, seed) for first in starts]
    return np.concatenate(windows)[:count]


def _window(first: int, count: int, lengths: np.ndarray, rows: int, seed: int) -> np.ndarray:
    drawn = np.empty(count * rows, np.int64)
    filled = 0
    while filled < len(drawn):
        epoch, offset = divmod(first * rows + filled, len(lengths))
        order = np.random.default_rng([seed, epoch, 1]).permutation(len(lengths))
        taken = order[offset : offset + len(drawn) - filled]
        drawn[filled : filled + len(taken)] = taken
        filled += len(taken)
    steps = drawn[np.argsort(lengths[drawn], kind="stable")].reshape(count, rows)
    shuffled = np.random.default_rng([seed, first, 2]).permutation(count)
    return steps[shuffled]


def padding_share(batch: Batch) -> float:
    """Share of the batch's slots, prefix and rows, that hold padding."""
    real = batch.prefix_valid.sum() + batch.row_valid.sum()
    return 1.0 - float(real) / (batch.prefix_valid.size + batch.row_valid.size)
