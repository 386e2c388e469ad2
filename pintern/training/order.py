"""Which examples a step trains on, and which of them share a pack: pure functions of the step.

Examples are shuffled every epoch. Those of a window of steps are dealt out into packs of like
length, long ones to short ones; steps take packs in the order of their length, and are shuffled
again. So padding is small, every example is seen once per epoch, and a resumed run needs no saved
position.
"""

from __future__ import annotations

import functools

import numpy as np

from pintern.training.batches import fullest, round_up

_WINDOW = 64  # steps whose rows are packed together
_SCORES = 1024  # slots of a pack whose scores cost a token as much as everything else


def packing(lengths: np.ndarray, *, rows: int) -> int:
    """How many rows stand one behind another in a pack, so that a step costs little at one width.

    A pack's rows don't attend to one another, but their scores are computed: packing rows that are
    alike, or long, would cost more than the padding that it saves. Runs that differ in their seeds
    alone have the same packs.

    Args:
      lengths: `[example]` length of each example's row, in tokens.
      rows: examples per step; a pack has a divisor of them.
    """
    costs = {}
    for packed in (n for n in range(1, rows + 1) if rows % n == 0):
        steps = _window(0, _WINDOW, lengths, rows, 0, packed)
        width = round_up(int(fullest(lengths[steps], packed).max()))
        costs[packed] = width / packed * (1 + width / _SCORES)
    return min(costs, key=costs.__getitem__)


def step_indices(
    step: int,
    lengths: np.ndarray,
    *,
    rows: int,
    seed: int,
    packed: int = 1,
    stretch: range | None = None,
) -> np.ndarray:
    """Which examples a step trains on.

    Args:
      step: optimizer step.
      lengths: `[example]` length of each example's row, in tokens.
      rows: examples per step.
      seed: of the order.
      packed: rows of a pack, a divisor of `rows`. Packs of fewer rows may be cut out of these; by
        an even number they are of like length too.
      stretch: of steps that have these lengths; no window reaches beyond it, so that none is
        sorted by two lengths. All steps if not given.

    Returns:
      `[rows]` indices of examples, pack by pack.
    """
    start = stretch.start if stretch else 0
    first = step - (step - start) % _WINDOW
    count = min(_WINDOW, stretch.stop - first) if stretch else _WINDOW
    return _window(first, count, lengths, rows, seed, packed)[step - first]


def stretch_indices(
    stretch: range, lengths: np.ndarray, *, rows: int, seed: int, packed: int = 1
) -> np.ndarray:
    """`[step, rows]` indices of all steps of a stretch, each as `step_indices` gives it."""
    windows = [
        _window(first, min(_WINDOW, stretch.stop - first), lengths, rows, seed, packed)
        for first in range(stretch.start, stretch.stop, _WINDOW)
    ]
    return np.concatenate(windows)


def _window(
    first: int, count: int, lengths: np.ndarray, rows: int, seed: int, packed: int
) -> np.ndarray:
    drawn = np.empty(count * rows, np.int64)
    filled = 0
    while filled < len(drawn):
        epoch, offset = divmod(first * rows + filled, len(lengths))
        taken = _order(seed, epoch, len(lengths))[offset : offset + len(drawn) - filled]
        drawn[filled : filled + len(taken)] = taken
        filled += len(taken)
    packs = _packs(drawn[np.argsort(lengths[drawn], kind="stable")], lengths, packed)
    by_length = np.argsort(lengths[packs].sum(axis=1), kind="stable")
    steps = packs[by_length].reshape(count, rows)
    return steps[np.random.default_rng([seed, first, 2]).permutation(count)]


def _packs(rising: np.ndarray, lengths: np.ndarray, packed: int) -> np.ndarray:
    """`[pack, packed]` examples, dealt out so that packs are of like length.

    Args:
      rising: examples, short ones first.
      lengths: of all examples.
      packed: rows of a pack.
    """
    *shorter, longest = rising.reshape(packed, -1)
    packs = longest[:, None]
    for dealt in reversed(shorter):
        # The shortest goes to the fullest pack.
        packs = packs[np.argsort(-lengths[packs].sum(axis=1), kind="stable")]
        packs = np.concatenate([packs, dealt[:, None]], axis=1)
    # The longest beside the shortest, and so on: each part of an even number is of like length too.
    ends = np.stack([np.arange(packed), np.arange(packed)[::-1]], axis=1).ravel()[:packed]
    return packs[:, ends]


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, 1]).permutation(count)
