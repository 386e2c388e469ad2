"""Examples of a given similarity: what it costs to show one that is less like the query."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from pintern.prompts.retrievers.pool import Scorer


class SimilarityBandRetriever:
    """The k items in a row whose most similar one stands at a quantile of the similarities.

    For one query, the m items that it may be given are ranked from the least similar, rank 0, to
    the most similar, rank m − 1; of equals the lower index counts as more similar. At quantile q
    it gets the item of rank t = ⌊q·(m − 1) + ½⌋ first and then those of ranks t − 1, t − 2, …; near
    the lower end, where there are fewer than k of them, the k least similar. So 1 is what the
    similarity's own retriever gives, ½ the median, and 0 the least similar items.

    BM25 gives 0 to every item without a common word, often to most: ranks among those follow from
    the index alone. Cosines have no such ties.

    Args:
      scorer: the retriever whose similarity it is.
      quantile: q, in [0, 1].
    """

    def __init__(self, scorer: Scorer, quantile: float):
        self.pool, self._scorer, self._quantile = scorer.pool, scorer, quantile

    def neighbours(
        self, queries: Sequence[str], k: int, *, exclude: Sequence[int | None] | None = None
    ) -> list[list[int]]:
        """See `Retriever.neighbours`."""
        left_out = self.pool.left_out(queries, k, exclude)
        if k == 0:
            return [[] for _ in queries]
        found = []
        with self.pool.progress(queries) as done:
            for scores, places in zip(self._scorer.scores(queries), left_out, strict=True):
                last = self.pool.size - len(places) - 1
                rank = max(math.floor(self._quantile * last + 0.5), k - 1)
                scores[places] = -np.inf
                found.append(_ranked(scores, last - rank, k))
                done(1)
        return found


def _ranked(scores: Float[np.ndarray, " item"], start: int, k: int) -> list[int]:
    """Indices at places start … start + k − 1 of the scores from the highest down."""
    ends = [len(scores) - start - k, len(scores) - start - 1]
    low, high = np.partition(scores, ends)[ends]
    candidates = np.flatnonzero((scores >= low) & (scores <= high))
    candidates = candidates[np.argsort(-scores[candidates], kind="stable")]
    above = np.count_nonzero(scores > high)
    return candidates[start - above : start - above + k].tolist()
