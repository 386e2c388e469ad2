"""Rows take turns in a fixed number of places: continuous batching (Orca, OSDI 2022).

As soon as an eighth of the places are free, the next rows are read, several at once, and take over.
Rows are read in a few widths and in two batch sizes: few programs do for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Array, Key

from pintern.models.sharding import fetch

if TYPE_CHECKING:
    from pintern.evaluation.decode import Generator
    from pintern.evaluation.places import Places

_SHORTEST = 8  # slots of the shortest bucket
_AT_ONCE = 8  # rows that are read together, if more aren't admitted: like lengths, little padding


class Service:
    """Rows of like length on their way through a fixed number of places.

    Args:
      generator: whose rows they are.
      rows: token ids of all.
      queues: of each member, the numbers of its rows, the longest first.
      places: of each member.
      keys: of rows' numbers, their random streams.
    """

    def __init__(
        self,
        generator: Generator,
        rows: Sequence[Sequence[int]],
        queues: list[list[int]],
        places: int,
        keys: Callable[[np.ndarray], Key[Array, "group row"]],
    ):
        self._generator, self._rows, self._keys = generator, rows, keys
        self._queues = [queue[::-1] for queue in queues]  # taken from the end
        self._slots = bucket(max(len(rows[queue[0]]) for queue in queues if queue))
        self._tenants = np.full((len(queues), places), -1)
        self._few = max(1, places // 8)
        together = max(self._few, _AT_ONCE, generator.tokens_at_once // self._slots)
        self._many = min(places, together)
        self._state: Places | None = None

    def run(self) -> Iterator[tuple[int, np.ndarray]]:
        """Number and tokens of each row, as they end."""
        while any(self._queues) or (self._tenants >= 0).any():
            self._fill()
            living = int((self._tenants >= 0).sum())
            enough = min(self._few, living) if any(self._queues) else living
            ended = self._tenants.size - living + enough
            self._state = self._generator.advance(self._state, ended)
            yield from self._collect()

    def warm(self) -> None:
        """Reads rows of each width, in both batch sizes, to which no place is given."""
        groups, places = self._tenants.shape
        widths = {bucket(len(self._rows[i])) for queue in self._queues for i in queue}
        for width in sorted(widths, reverse=True):
            for count in (self._many, self._few):
                nobody = np.full((groups, count), -1)
                self._take(nobody, np.full_like(nobody, places), width)
        self._state = self._generator.advance(self._state, 0)
        list(self._collect())

    def _fill(self) -> None:
        """Admits rows, in one of two batch sizes, while there are enough places or nobody else."""
        while True:
            free = (self._tenants < 0).sum(1)
            ready = max(min(len(q), n) for q, n in zip(self._queues, free, strict=True))
            waits = ready < self._few and (self._tenants >= 0).any()
            if ready == 0 or (waits and sum(map(len, self._queues)) > ready):
                return
            self._admit(self._many if 2 * ready > self._many else self._few)

    def _admit(self, count: int) -> None:
        groups, places = self._tenants.shape
        where = np.full((groups, count), places)  # no such place: left out
        chosen = np.full((groups, count), -1)
        for g, queue in enumerate(self._queues):
            for c, place in enumerate(np.flatnonzero(self._tenants[g] < 0)[:count]):
                if queue:
                    chosen[g, c], where[g, c] = queue.pop(), place
                    self._tenants[g, place] = chosen[g, c]
        self._take(chosen, where)

    def _take(self, chosen: np.ndarray, where: np.ndarray, width: int = 1) -> None:
        """Reads rows, `width` tokens where there is none, and gives them places."""
        rows = [self._rows[i] if i >= 0 else [0] * width for i in chosen.flat]
        read = self._generator.read_padded(*pad_rows(rows))
        if self._state is None:
            places = self._tenants.shape[1]
            self._state = self._generator.no_rows(read, places, self._slots)
        self._state = self._generator.admit(self._state, read, where, self._keys(chosen))

    def _collect(self) -> Iterator[tuple[int, np.ndarray]]:
        ended = fetch(self._generator.ended(self._state)) & (self._tenants >= 0)
        made = fetch(self._state.made)
        for g, place in np.argwhere(ended):
            yield int(self._tenants[g, place]), made[g, place]
            self._tenants[g, place] = -1


def bucket(length: int) -> int:
    """Slots for a row: the next of 8, 16, …, 64, 80, 96, 112, 128, 160, …: few shapes do."""
    step = max(_SHORTEST, 2 ** ((length - 1).bit_length() - 3))
    return -(-length // step) * step


def pad_rows(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Right-pads to the longest row's bucket: `[row, slot]` tokens and validity."""
    width = bucket(max(len(row) for row in rows))
    tokens = np.zeros((len(rows), width), np.int32)
    valid = np.zeros_like(tokens)
    for r, row in enumerate(rows):
        tokens[r, : len(row)] = row
        valid[r, : len(row)] = 1
    return tokens, valid
