"""From rows to packed batches of few shapes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from pintern.models.shared_prefix import Batch
from pintern.prompts.rows import Row

_MULTIPLE = 8
_MOST = 10  # pack widths of a level, each a program to compile
_STEPS_A_WIDTH = 60  # of a level, from three widths on
_PADDING = 0.08  # share of slots that is worth no further width
_SLACK = 0.03  # likewise, above what the most widths would leave


class Shape(NamedTuple):
    """Static shape of a batch.

    Attributes:
      prefix: slots of it.
      pack: slots of a pack.
      target: slots for the targets of a lane.
      packed: rows of a pack.
    """

    prefix: int
    pack: int
    target: int
    packed: int = 1


def round_up(length: int, multiple: int = _MULTIPLE) -> int:
    """Smallest multiple that holds `length`; 0 stays 0."""
    return math.ceil(length / multiple) * multiple


def make_batch(
    prefix: Sequence[int], rows: Sequence[Row], shape: Shape, *, lane_rows: int = 1
) -> Batch:
    """One group: rows behind one prefix, in packs that are padded on the right to `shape`.

    Args:
      prefix: ids.
      rows: a multiple of `lane_rows`.
      shape: holds them.
      lane_rows: rows whose targets stand in one list; a multiple of a pack's.
    """
    prefix_tokens = np.zeros((1, shape.prefix), np.int32)
    prefix_valid = np.zeros_like(prefix_tokens)
    prefix_tokens[0, : len(prefix)] = prefix
    prefix_valid[0, : len(prefix)] = 1
    tokens = np.zeros((1, len(rows) // shape.packed, shape.pack), np.int32)
    pack_rows = np.zeros_like(tokens)
    of_row = np.zeros((1, len(rows) // lane_rows, shape.target), np.int32)
    slots, targets = np.zeros_like(of_row), np.zeros_like(of_row)
    weights = np.zeros(of_row.shape, np.float32)
    filled = end = 0
    for r, row in enumerate(rows):
        pack, number = divmod(r, shape.packed)
        first = end if number else 0
        end = first + len(row.read)
        tokens[0, pack, first:end] = row.read
        pack_rows[0, pack, first:end] = number + 1
        lane, place = divmod(r, lane_rows)
        start = filled if place else 0
        filled = start + len(row.tokens) - row.start
        here = (0, lane, slice(start, filled))
        of_row[here] = place
        slots[here] = first + np.arange(row.start, len(row.tokens)) - 1
        targets[here] = row.tokens[row.start :]
        weights[here] = 1.0
    return Batch(
        prefix_tokens,
        prefix_valid,
        tokens,
        pack_rows,
        of_row,
        slots,
        targets,
        weights,
        packed=shape.packed,
    )


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The few shapes that a level's packs are padded to.

    Attributes:
      rising: the shapes, narrowest packs first; a batch takes the first that holds its longest pack
        and the targets of each of its lanes.
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
        every: bool = False,
        most: int = _MOST,
        padding: float = _PADDING,
        slack: float = _SLACK,
        lane_rows: int = 1,
        packed: int = 1,
    ) -> Shapes:
        """As few widths as keep padding below a share, each where it saves most.

        Each width is a program to compile. Where packs of a step are much alike, or behind a long
        prefix, one or two will do; rows that stand alone need more.

        Args:
          prefix: of the level.
          rows: every row that may be met.
          steps: rows' indices, step by step, as training will meet them.
          every: whether no other steps will be met. Else they are a sample, and the last shape
            holds whatever comes; without any there is no other one.
          most: widths at most.
          padding: share of the steps' slots, prefix and rows, that may be padding.
          slack: share of slots above those of `most` widths that is worth no further width: where
            padding comes of unlike packs in one step, widths don't help.
          lane_rows: rows of a lane; the rows of a step are a multiple of it.
          packed: rows of a pack; those of a lane are a multiple of it.
        """
        lengths = np.array([len(row.read) for row in rows])
        completions = np.array([len(row.tokens) - row.start for row in rows])
        longest, needed = np.zeros(0, int), np.zeros(0, int)
        if len(steps):
            steps = np.asarray(steps)
            longest = fullest(lengths[steps], packed)
            needed = fullest(completions[steps], lane_rows)
        settled = every and len(steps) > 0
        widest = round_up(int(longest.max() if settled else packed * lengths.max()))
        widths = [widest]
        if len(steps):
            # Every step has as many packs: a step's slots are these times its width.
            count = steps.shape[1] // packed
            fixed = len(steps) * round_up(len(prefix))
            real = len(steps) * len(prefix) + lengths[steps].sum()
            found = [
                (chosen, fixed + count * slots)
                for chosen, slots in _best_widths(longest, widest, most)
            ]
            enough = max(real / (1 - padding), (1 + slack) * found[-1][1])
            widths = next(chosen for chosen, slots in found if slots <= enough)
        taken = np.searchsorted(widths, longest)
        targets = [int(needed[taken == i].max(initial=0)) for i in range(len(widths))]
        if not settled:
            targets[-1] = lane_rows * int(completions.max())
        return cls(
            tuple(
                Shape(round_up(len(prefix)), width, round_up(target), packed)
                for width, target in zip(widths, targets, strict=True)
            ),
            lane_rows,
        )

    def shape_for(self, rows: Sequence[Row]) -> Shape:
        """The smallest shape that holds these rows.

        Raises:
          ValueError: they are none of the steps that were planned, and don't fit.
        """
        packed = self.rising[0].packed
        (longest,) = fullest(np.array([[len(row.read) for row in rows]]), packed)
        targets = np.array([[len(row.tokens) - row.start for row in rows]])
        (targets,) = fullest(targets, self.lane_rows)
        for shape in self.rising:
            if shape.pack >= longest and shape.target >= targets:
                return shape
        raise ValueError(f"No shape of {self.rising} holds {longest} slots, {targets} targets.")


def fullest(counts: np.ndarray, together: int) -> np.ndarray:
    """`[step]` tokens of each step's fullest group of so many rows, from `[step, row]` counts."""
    return counts.reshape(len(counts), -1, together).sum(axis=2).max(axis=1)


def widths_of_level(steps: int) -> int:
    """How many pack widths a level of so many steps is worth: compiling one takes seconds."""
    return min(_MOST, max(2, steps // _STEPS_A_WIDTH))


def _best_widths(longest: np.ndarray, widest: int, most: int) -> Iterator[tuple[list[int], int]]:
    """For 1, 2, … widths: those with the fewest slots in sum over the steps, and that sum.

    Args:
      longest: `[step]` length of each step's longest pack.
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


def padding_share(batch: Batch) -> float:
    """Share of the batch's slots, prefix and rows, that hold padding."""
    return 1.0 - batch.real_tokens / (batch.prefix_valid.size + batch.pack_rows.size)
