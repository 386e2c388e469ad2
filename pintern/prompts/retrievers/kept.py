"""What a large pool's own items are shown, found once and kept on disk."""

from collections.abc import Callable, Sequence
from pathlib import Path

from pintern.prompts.kept import kept_lists
from pintern.prompts.retrievers.pool import Retriever
from pintern.prompts.retrievers.vectors import digest


class KeptNeighbours:
    """Another retriever, whose answers for its whole pool, each item left out of its own, are kept.

    That is what training asks for; other questions are passed on.

    Args:
      retriever: who finds them.
      identity: texts to what, with the texts, its answers follow from.
      cache: folder of the files.
    """

    def __init__(self, retriever: Retriever, identity: Callable[[Sequence[str]], str], cache: Path):
        self.pool = retriever.pool
        self._retriever, self._identity, self._cache = retriever, identity, cache

    def neighbours(
        self, queries: Sequence[str], k: int, *, exclude: Sequence[int | None] | None = None
    ) -> list[list[int]]:
        """See `Retriever.neighbours`."""

        def find() -> list[list[int]]:
            return self._retriever.neighbours(queries, k, exclude=exclude)

        own = exclude is not None and list(exclude) == list(range(self.pool.size))
        if k == 0 or not own or tuple(queries) != self.pool.texts:
            return find()
        name = digest([self._identity(queries), str(k), *queries])
        return kept_lists(self._cache / f"neighbours-{name}.npz", find)
