"""The two sides of `benchmarks.decoding`, and what both are asked."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import measure

if TYPE_CHECKING:
    from pintern.evaluation.decode import Generator

ENDS = 40  # about one token in so many ends its row, of a ragged request


@dataclasses.dataclass(frozen=True)
class Case:
    """Rows and how they are decoded.

    Attributes:
      name: of the result.
      target: ratio to `generate` that it is to reach.
      count: rows.
      prefix: tokens that all of them stand behind.
      lengths: shortest and longest row.
      new: tokens at most.
      batches: sizes among which `generate` takes its best; ours takes the last.
      repeats: timed runs of each side.
      every: so many-th of its batches are all that `generate` serves; its time is scaled.
      ends: ids that end a row.
    """

    name: str
    target: float
    count: int
    prefix: int
    lengths: tuple[int, int]
    new: int
    batches: tuple[int, ...]
    repeats: int
    every: int = 1
    ends: tuple[int, ...] = ()

    @property
    def ragged(self) -> bool:
        """Whether rows end when they like."""
        return self.lengths[0] != self.lengths[1]


def requests(case: Case, vocab: int) -> tuple[list[int], list[list[int]]]:
    """Token ids of the prefix and of each row: random, and the same for both sides."""
    rng = np.random.default_rng(0)
    low, high = case.lengths
    prefix = rng.integers(0, vocab, case.prefix).tolist()
    return prefix, [
        rng.integers(0, vocab, rng.integers(low, high + 1)).tolist() for _ in range(case.count)
    ]


def ending_ids(model) -> tuple[int, ...]:
    """Ids that are to end rows: one in `ENDS`, which make up about that share of what is chosen.

    A model chooses some ids far more often than others, and any of these would end most rows or
    none. So every `ENDS`-th id by frequency is taken, from the place that comes nearest.

    Args:
      model: of transformers, whose greedy tokens behind random rows are counted.
    """
    import torch

    vocab, many = model.config.vocab_size, 32
    rows = np.random.default_rng(1).integers(0, vocab, (many, many))
    ids = torch.tensor(rows, device=model.device)
    with torch.inference_mode():
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=many,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    counts = np.bincount(made[:, many:].ravel().cpu().numpy(), minlength=vocab)
    order = np.argsort(-counts, kind="stable")
    shares = [counts[order[first::ENDS]].sum() / counts.sum() for first in range(ENDS)]
    nearest = int(np.argmin(np.abs(np.array(shares) - 1 / ENDS)))
    return tuple(sorted(order[nearest::ENDS].tolist()))


class Ours:
    """The engine; a run is a whole queue, the reading of the prefix included."""

    def __init__(self, checkpoint, split: tuple, case: Case):
        self._split = split
        self._vocab, self._case = checkpoint.config.vocab_size, case
        self._prefix, self._rows = requests(case, self._vocab)
        self.made: list[list[int]] = []
        self.batch = case.batches[-1]
        self.compiled = 0  # programs, in timed runs: there should be none

    def _generator(self) -> Generator:
        from pintern.evaluation.decode import Generator
        from pintern.evaluation.sampling import Sampling

        never = self._vocab  # an id that isn't there
        sampling = Sampling(self._case.new, never, also_end=self._case.ends)
        return Generator(*self._split, None, self._prefix, sampling)

    def warm(self) -> None:
        """Compiles what the rows need."""
        self._generator().warm(self._rows, batch_rows=self.batch)

    def run(self) -> None:
        """Serves all rows."""
        before = measure.compilations()
        self.made = self._generator()(self._rows, batch_rows=self.batch)
        self.compiled += measure.compilations() - before

    @property
    def tokens(self) -> int:
        """Chosen tokens of the last run, those that ended completions too."""
        return sum(min(len(row) + 1, self._case.new) for row in self.made)


class Peer:
    """`generate`."""

    def __init__(self, model, case: Case):
        self._model, self._case = model, case
        vocab = model.config.vocab_size
        self._prefix, self._rows = requests(case, vocab)
        self._ends = list(case.ends)
        self.made: dict[int, list[int]] = {}
        self._order = sorted(range(case.count), key=lambda i: len(self._rows[i]))
        self._serve(1, self._order[:1])
        self.batch = self._best()

    def _serve(self, batch: int, order: Sequence[int], every: int = 1) -> dict[int, list[int]]:
        made = {}
        for first in range(0, len(order), batch * every):
            chosen = order[first : first + batch]
            answers = self._generate([self._rows[i] for i in chosen])
            made |= zip(chosen, answers, strict=True)
        return made

    def _best(self) -> int:
        """The batch size at which rows of middle length, as many as the largest batch has, take the
        least time.
        """
        import torch

        sizes, times = self._case.batches, {}
        if len(sizes) == 1:
            return sizes[0]
        first = (len(self._order) - max(sizes)) // 2
        middle = self._order[first : first + max(sizes)]
        for size in sizes:
            with contextlib.suppress(torch.OutOfMemoryError):  # then it is none
                times[size] = measure.spent(lambda n=size: self._serve(n, middle))[0]
        return min(times, key=times.get)

    def _generate(self, rows: Sequence[list[int]]) -> list[list[int]]:
        import torch

        width = max(map(len, rows)) + len(self._prefix)
        ids = np.zeros((len(rows), width), np.int64)
        mask = np.zeros_like(ids)
        for r, row in enumerate(rows):
            whole = [*self._prefix, *row]
            ids[r, width - len(whole) :], mask[r, width - len(whole) :] = whole, 1
        ids, mask = (torch.from_numpy(x).to(self._model.device) for x in (ids, mask))
        with torch.inference_mode():
            out = self._model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=self._case.new,
                do_sample=False,
                eos_token_id=self._ends or None,
                pad_token_id=0,
            )
        return [_until(row, self._ends) for row in out[:, width:].tolist()]

    def lead(self, number: int, tokens: list[int]) -> float:
        """By what share of it the highest logit exceeds that of the token there, where it does so
        most: of these tokens behind a row's prompt. Infinite, if there are too few of them.
        """
        import torch

        if len(tokens) < self._case.new and not self._ends:
            return math.inf
        tokens = [*tokens, *self._ends[:1]][: self._case.new]
        read = [*self._prefix, *self._rows[number], *tokens[:-1]]
        with torch.inference_mode():
            ids = torch.tensor([read], device=self._model.device)
            logits = self._model(ids, logits_to_keep=len(tokens)).logits[0].float()
        highest = logits.max(-1).values
        chosen = logits.gather(-1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0]
        if tokens[-1] in self._ends:  # any id that ends a completion will do for the end
            chosen[-1] = logits[-1, self._ends].max()
        return float(((highest - chosen) / highest.abs()).max())

    def run(self) -> None:
        """Serves all rows, or every so many-th batch of them."""
        self.made = self._serve(self.batch, self._order, self._case.every)


def _until(tokens: list[int], ends: Sequence[int]) -> list[int]:
    found = set(ends)
    return list(itertools.takewhile(lambda token: token not in found, tokens))
