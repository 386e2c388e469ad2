"""Examples that are not chosen by similarity: what a cleverer choice has to beat."""

import hashlib
from collections.abc import Sequence

import numpy as np

from pintern.errors import UserError
from pintern.prompts.retrievers.pool import Pool


class RandomRetriever:
    """Items drawn without replacement, as a pure function of seed and query text.

    The same query gets the same draw wherever it stands and whatever else is asked, and a smaller
    `k` gets the head of what a larger one gets.
    """

    def __init__(self, pool: Sequence[str], seed: int):
        self.pool = Pool(pool)
        self._seed = seed

    def neighbours(
        self, queries: Sequence[str], k: int, *, exclude: Sequence[int | None] | None = None
    ) -> list[list[int]]:
        """See `Retriever.neighbours`."""
        found = []
        for query, places in zip(queries, self.pool.left_out(queries, k, exclude), strict=True):
            digest = hashlib.sha256(f"{self._seed}\n{query}".encode()).digest()
            drawn = np.random.default_rng(int.from_bytes(digest)).permutation(self.pool.size)
            # At most `len(places)` of the head are left out, so that it holds k others.
            head = drawn[: k + len(places)]
            found.append(head[~np.isin(head, places)][:k].tolist())
        return found


class FixedRetriever:
    """The same items for every query: the listed ones in their order, then the pool in its order.

    A query that is among them gets the next ones in its place. So the first k of the pool are
    everybody's where none are listed.

    Raises:
      UserError: a listed index that isn't in the pool, or is listed twice.
    """

    def __init__(self, pool: Sequence[str], indices: Sequence[int] = ()):
        self.pool = Pool(pool)
        for index in indices:
            if not 0 <= index < len(pool):
                raise UserError(
                    f"config.prompt.fixed_shots lists {index}, but there are {len(pool)} labelled "
                    "pairs.",
                    f"Indices go from 0 to {len(pool) - 1}.",
                )
        if len(set(indices)) < len(indices):
            raise UserError(f"config.prompt.fixed_shots {tuple(indices)} lists an index twice.")
        others = np.setdiff1d(np.arange(len(pool)), np.asarray(indices, int))
        self._order = np.concatenate([np.asarray(indices, int), others])

    def neighbours(
        self, queries: Sequence[str], k: int, *, exclude: Sequence[int | None] | None = None
    ) -> list[list[int]]:
        """See `Retriever.neighbours`."""
        found = []
        for places in self.pool.left_out(queries, k, exclude):
            head = self._order[: k + len(places)]
            found.append(head[~np.isin(head, places)][:k].tolist())
        return found
