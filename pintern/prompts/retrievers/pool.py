"""What every retriever promises, checks and leaves out."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
from jaxtyping import Float

from pintern.errors import UserError
from pintern.progress import Progress

# Query and item pairs above which retrieval shows its progress: some seconds of work.
_LONG = 10**9


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


class Scorer(Protocol):
    """A retriever that ranks by a similarity which can be asked for."""

    pool: "Pool"

    def scores(self, queries: Sequence[str]) -> Iterator[Float[np.ndarray, " item"]]:
        """Yields each query's similarity to every item of the pool; higher is nearer."""
        ...


class Pool:
    """Texts that are retrieved from.

    Attributes:
      texts: of the items, in the order that indices refer to.
      places: text to the places where it stands.
    """

    def __init__(self, texts: Sequence[str]):
        self.texts = tuple(texts)
        self.places = defaultdict(list)
        for place, text in enumerate(texts):
            self.places[text].append(place)

    @property
    def size(self) -> int:
        """Number of items."""
        return len(self.texts)

    def left_out(
        self, queries: Sequence[str], k: int, exclude: Sequence[int | None] | None
    ) -> list[list[int]]:
        """For each query the sorted places that it may not be given.

        Raises:
          UserError: see `Retriever.neighbours`.
        """
        if not 0 <= k < self.size:
            raise UserError(
                f"{k} examples per query were asked of {self.size} labelled pairs; expected 0 to "
                f"{self.size - 1}, as none is shown to itself.",
                "Lower config.prompt.max_shots, curriculum.shots, distill.shots or eval.shots, "
                "whichever asks for them; or give more pairs.",
            )
        if exclude is None:
            exclude = [None] * len(queries)
        found = []
        for query, own in zip(queries, exclude, strict=True):
            left_out = [] if own is None else self._copies(query, own)
            if k > self.size - len(left_out):
                raise UserError(
                    f"{k} examples were asked for {query!r}, but {len(left_out)} of the pool's "
                    f"{self.size} items have its text.",
                    f"Ask at most {self.size - len(left_out)}, or remove the repeated queries.",
                )
            found.append(left_out)
        return found

    @contextmanager
    def progress(self, queries: Sequence[str]) -> Iterator[Callable[[int], None]]:
        """Gives a function that is told how many more queries are done.

        It shows them while many queries are looked up in a large pool, and else nothing.
        """
        if len(queries) * self.size < _LONG:
            yield lambda count: None
            return
        with Progress("retrieval", len(queries), units="texts") as bar:
            yield bar.advance

    def _copies(self, query: str, own: int) -> list[int]:
        same = {*self.places[self.texts[own]], *self.places.get(query, ())}
        return sorted(same)


def highest(scores: Float[np.ndarray, " item"], k: int) -> list[int]:
    """Indices of the k highest scores, ties by index; a partition, because k is far below n."""
    if k == 0:
        return []
    cut = np.partition(scores, -k)[-k]
    candidates = np.flatnonzero(scores >= cut)
    return candidates[np.argsort(-scores[candidates], kind="stable")][:k].tolist()
