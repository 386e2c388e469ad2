"""Retrieval by shared words."""

import logging
import re
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

from pintern.prompts.retrievers.pool import Pool, highest

_WORD = re.compile(r"\w+")


class BM25Retriever:
    """Okapi BM25 over lower-case words and numbers; no stop words. Ties go to the lower index.

    The index of 100,000 items is built in some seconds, so it isn't kept on disk.
    """

    def __init__(self, pool: Sequence[str]):
        import bm25s

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it tells every step of indexing
        self.pool = Pool(pool)
        self._index = bm25s.BM25()
        # The library's own empty token has no column in its index, so that asking for it fails.
        self._index.index(
            [_words(text) for text in pool], create_empty_token=False, show_progress=False
        )

    def neighbours(
        self, queries: Sequence[str], k: int, *, exclude: Sequence[int | None] | None = None
    ) -> list[list[int]]:
        """See `Retriever.neighbours`."""
        left_out = self.pool.left_out(queries, k, exclude)
        found = []
        with self.pool.progress(queries) as done:
            for scores, places in zip(self.scores(queries), left_out, strict=True):
                scores[places] = -np.inf
                found.append(highest(scores, k))
                done(1)
        return found

    def scores(self, queries: Sequence[str]) -> Iterator[Float[np.ndarray, " item"]]:
        """See `Scorer.scores`."""
        for query in queries:
            yield self._index.get_scores(_words(query))


def _words(text: str) -> list[str]:
    # The empty word stands for a text without any, because bm25s indexes no empty document.
    return _WORD.findall(text.lower()) or [""]
