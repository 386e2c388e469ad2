"""Retrieval by the cosine of vectors."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from pintern.prompts.retrievers.pool import Pool
from pintern.prompts.retrievers.topk import nearest, score_rows, unit_vectors
from pintern.prompts.retrievers.vectors import Encoder, cached_vectors, vectors_of

# Scores held at once where every item is ranked: 64 MB.
_SCORES = 2**23


class DenseRetriever:
    """Items of the highest cosine; ties go to the lower index.

    The pool's vectors are made when they are first asked for, and kept on disk.

    Args:
      pool: texts of the items.
      encoder: makes their vectors, and those of queries.
      cache: folder for the pool's vectors; None keeps them nowhere.
    """

    def __init__(self, pool: Sequence[str], encoder: Encoder, cache: Path | None = None):
        self.pool = Pool(pool)
        self._encoder, self._cache = encoder, cache

    def neighbours(
        self, queries: Sequence[str], k: int, *, exclude: Sequence[int | None] | None = None
    ) -> list[list[int]]:
        """See `Retriever.neighbours`."""
        left_out = self.pool.left_out(queries, k, exclude)
        if k == 0 or not queries:
            return [[] for _ in queries]
        units = self._units_of(queries)
        with self.pool.progress(queries) as done:
            return nearest(units, self._units, k, left_out, done=done).tolist()

    def scores(self, queries: Sequence[str]) -> Iterator[Float[np.ndarray, " item"]]:
        """See `Scorer.scores`."""
        block = max(1, _SCORES // self.pool.size)
        return score_rows(self._units_of(queries), self._units, block)

    @functools.cached_property
    def _units(self) -> Int[np.ndarray, "item dim"]:
        # Each text once: copies then have equal vectors, and tie exactly.
        units = unit_vectors(cached_vectors(list(self.pool.places), self._encoder, self._cache))
        row_of = {text: row for row, text in enumerate(self.pool.places)}
        return units[[row_of[text] for text in self.pool.texts]]

    def _units_of(self, queries: Sequence[str]) -> Int[np.ndarray, "query dim"]:
        """Vectors of queries; those that stand in the pool have theirs already."""
        if tuple(queries) == self.pool.texts:
            return self._units
        places = self.pool.places
        known = [row for row, query in enumerate(queries) if query in places]
        new = list(dict.fromkeys(query for query in queries if query not in places))
        units = np.empty((len(queries), self._units.shape[1]), np.int32)
        units[known] = self._units[[places[queries[row]][0] for row in known]]
        if new:
            made = dict(zip(new, unit_vectors(vectors_of(new, self._encoder)), strict=True))
            for row, query in enumerate(queries):
                if query in made:
                    units[row] = made[query]
        return units
