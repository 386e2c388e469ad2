"""Which training examples to show beside a query: lexically near ones, or random ones."""

import hashlib
import logging
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float

from pintern.errors import UserError

KINDS = ("bm25", "random")
_WORD = re.compile(r"\w+")


class Retriever(Protocol):
    """Finds items of a pool for queries. The pool is fixed when the retriever is made."""

    def neighbours(
        self, queries: Sequence[str], k: int, *, exclude: Sequence[int | None] | None = None
    ) -> list[list[int]]:
        """Pool indices for each query, best first, `k` each.

        Args:
          queries: texts, in any order; a query's answer doesn't depend on the others.
          k: items per query.
          exclude: for each query its own place in the pool, or None if it has none there. An item
            that is excluded takes every item of the same text with it: a copy of a training query
            would give its answer away just as the query itself would.

        Raises:
          UserError: `k` is negative, above pool − 1, or more than exclusion leaves for some query.
        """
        ...


class BM25Retriever:
    """Okapi BM25 over lower-case words and numbers; no stop words. Ties go to the lower index."""

    def __init__(self, pool: Sequence[str]):
        import bm25s

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it tells every step of indexing
        self._pool = _Pool(pool)
        self._index = bm25s.BM25()
        # The library's own empty token has no column in its index, so that asking for it fails.
        self._index.index(
            [_words(text) for text in pool], create_empty_token=False, show_progress=False
        )

    def neighbours(
        self, queries: Sequence[str], k: int, *, exclude: Sequence[int | None] | None = None
    ) -> list[list[int]]:
        """See `Retriever.neighbours`."""
        found = []
        for query, left_out in self._pool.requests(queries, k, exclude):
            scores = self._index.get_scores(_words(query))
            scores[left_out] = -np.inf
            found.append(_highest(scores, k))
        return found


class RandomRetriever:
    """Items drawn without replacement, as a pure function of seed and query text.

    The same query gets the same draw wherever it stands and whatever else is asked, and a smaller
    `k` gets the head of what a larger one gets.
    """

    def __init__(self, pool: Sequence[str], seed: int):
        self._pool = _Pool(pool)
        self._seed = seed

    def neighbours(
        self, queries: Sequence[str], k: int, *, exclude: Sequence[int | None] | None = None
    ) -> list[list[int]]:
        """See `Retriever.neighbours`."""
        found = []
        for query, left_out in self._pool.requests(queries, k, exclude):
            digest = hashlib.sha256(f"{self._seed}\n{query}".encode()).digest()
            drawn = np.random.default_rng(int.from_bytes(digest)).permutation(self._pool.size)
            # At most `len(left_out)` of the head are left out, so that it holds k others.
            head = drawn[: k + len(left_out)]
            found.append(head[~np.isin(head, left_out)][:k].tolist())
        return found


def make_retriever(kind: str, pool: Sequence[str], seed: int) -> Retriever:
    """Retriever over a pool of query texts.

    Args:
      kind: `bm25` or `random`.
      pool: texts of the training queries, in the order that indices refer to.
      seed: of the random draws; BM25 has no use for it.

    Raises:
      UserError: an unknown kind, or a pool with fewer than 2 items.
    """
    match kind:
        case "bm25":
            return BM25Retriever(pool)
        case "random":
            return RandomRetriever(pool, seed)
    raise UserError(f"Unknown retriever {kind!r}.", f"Use one of: {', '.join(KINDS)}.")


def retrieve_for_training(retriever: Retriever, pool: Sequence[str], k: int) -> list[list[int]]:
    """Neighbours of every item of the pool among the others (leave one out)."""
    return retriever.neighbours(pool, k, exclude=range(len(pool)))


class _Pool:
    """What every retriever checks and leaves out alike."""

    def __init__(self, texts: Sequence[str]):
        if len(texts) < 2:
            raise UserError(
                f"The retriever's pool has {len(texts)} item(s).",
                "It needs at least 2: an item is never retrieved for itself.",
            )
        self._texts = tuple(texts)
        self._places = defaultdict(list)
        for place, text in enumerate(texts):
            self._places[text].append(place)

    @property
    def size(self) -> int:
        return len(self._texts)

    def requests(
        self, queries: Sequence[str], k: int, exclude: Sequence[int | None] | None
    ) -> Iterator[tuple[str, list[int]]]:
        """Yields each query with the sorted places that it may not be given."""
        if not 0 <= k < self.size:
            raise UserError(
                f"{k} examples per query were asked of a pool of {self.size}.",
                f"Ask between 0 and {self.size - 1}: an item is never retrieved for itself.",
            )
        if exclude is None:
            exclude = [None] * len(queries)
        for query, own in zip(queries, exclude, strict=True):
            left_out = [] if own is None else self._copies(query, own)
            if k > self.size - len(left_out):
                raise UserError(
                    f"{k} examples were asked for {query!r}, but {len(left_out)} of the pool's "
                    f"{self.size} items have its text.",
                    f"Ask at most {self.size - len(left_out)}, or remove the repeated queries.",
                )
            yield query, left_out

    def _copies(self, query: str, own: int) -> list[int]:
        same = {*self._places[self._texts[own]], *self._places.get(query, ())}
        return sorted(same)


def _words(text: str) -> list[str]:
    # The empty word stands for a text without any, because bm25s indexes no empty document.
    return _WORD.findall(text.lower()) or [""]


def _highest(scores: Float[np.ndarray, " item"], k: int) -> list[int]:
    """Indices of the k highest scores, ties by index; a partition, because k is far below n."""
    if k == 0:
        return []
    cut = np.partition(scores, -k)[-k]
    candidates = np.flatnonzero(scores >= cut)
    return candidates[np.argsort(-scores[candidates], kind="stable")][:k].tolist()
