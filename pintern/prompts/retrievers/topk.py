"""The k nearest of many vectors for many others, in bounded memory and to the last bit.

Vectors of length 1 are rounded to whole numbers of 2⁻²⁶. By Cauchy and Schwarz every partial sum of
a product of two is then a whole number of at most 2⁵² or so, which float64 holds exactly. So a
cosine doesn't depend on the order in which it is summed: not on the block that it is computed in,
the number of threads or the library. Equal vectors tie exactly, and ties go to the lower index. The
rounding is finer than that of float32 vectors.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from pintern.errors import UserError

_UNIT = 2.0**26
# Rows and columns of a block: 64 MB of scores, and still large enough for a fast product.
QUERY_BLOCK, ITEM_BLOCK = 2048, 4096


def unit_vectors(vectors: Float[np.ndarray, "item dim"]) -> Int[np.ndarray, "item dim"]:
    """Vectors scaled to length 1, in whole numbers of 2⁻²⁶ (int32). A zero vector stays zero.

    Raises:
      UserError: a vector isn't finite.
    """
    units = np.empty(vectors.shape, np.int32)
    for start in range(0, len(vectors), ITEM_BLOCK):
        block = np.asarray(vectors[start : start + ITEM_BLOCK], np.float64)
        if not np.isfinite(block).all():
            raise UserError(
                "A text's vector is not finite.",
                "The encoder's weights are broken, or compute it in float32.",
            )
        # Scaled by the largest entry first: squares of large entries could overflow.
        block = block / np.maximum(np.abs(block).max(axis=1, keepdims=True, initial=0), 1e-300)
        length = np.linalg.norm(block, axis=1, keepdims=True)
        units[start : start + ITEM_BLOCK] = np.rint(_UNIT * block / np.maximum(length, 1e-300))
    return units


def cosines(
    queries: Int[np.ndarray, "query dim"], items: Int[np.ndarray, "item dim"]
) -> Float[np.ndarray, "query item"]:
    """Cosine of every pair of `unit_vectors`."""
    scores = queries.astype(np.float64) @ items.astype(np.float64).T
    scores /= _UNIT**2  # a power of two: exact
    return scores


def nearest(
    queries: Int[np.ndarray, "query dim"],
    items: Int[np.ndarray, "item dim"],
    k: int,
    left_out: Sequence[Sequence[int]],
    *,
    query_block: int = QUERY_BLOCK,
    item_block: int = ITEM_BLOCK,
    done: Callable[[int], None] = lambda count: None,
) -> Int[np.ndarray, "query k"]:
    """Indices of the k items of the highest cosine for each query, best first.

    Memory beyond arguments and result is a few blocks, whatever the numbers of queries and items.

    Args:
      queries: see `unit_vectors`.
      items: likewise.
      k: at most the items that are not left out.
      left_out: for each query, sorted items that it may not be given.
      query_block: queries at once.
      item_block: items at once; neither changes the answer.
      done: told how many more queries are answered.
    """
    found = np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries), query_block):
        stop = min(start + query_block, len(queries))
        found[start:stop] = _nearest_of_block(
            queries[start:stop], items, k, left_out[start:stop], item_block
        )
        done(stop - start)
    return found


def _nearest_of_block(
    queries: Int[np.ndarray, "query dim"],
    items: Int[np.ndarray, "item dim"],
    k: int,
    left_out: Sequence[Sequence[int]],
    item_block: int,
) -> Int[np.ndarray, "query k"]:
    best = np.full((len(queries), k), -np.inf)
    best_items = np.zeros((len(queries), k), np.int64)
    if k == 0:
        return best_items
    banned_rows = np.repeat(np.arange(len(left_out)), [len(places) for places in left_out])
    banned_items = np.fromiter((p for places in left_out for p in places), np.int64)
    for start in range(0, len(items), item_block):
        scores = cosines(queries, items[start : start + item_block])
        inside = (banned_items >= start) & (banned_items < start + item_block)
        scores[banned_rows[inside], banned_items[inside] - start] = -np.inf
        # An item that only equals the k-th so far comes later and would lose the tie.
        rows, columns = _above(scores, best[:, -1:], k)
        best, best_items = _merge(best, best_items, rows, columns + start, scores[rows, columns])
    return best_items


def _above(
    scores: Float[np.ndarray, "query item"], floor: Float[np.ndarray, "query 1"], k: int
) -> tuple[Int[np.ndarray, " entry"], Int[np.ndarray, " entry"]]:
    """Entries above the floor of their row; where there are many, only those that can be kept."""
    passing = scores > floor
    if np.count_nonzero(passing) > 4 * k * len(scores) and k < scores.shape[1]:
        passing &= scores >= np.partition(scores, -k, axis=1)[:, -k, None]
    return np.divmod(np.flatnonzero(passing), scores.shape[1])


def _merge(
    best: Float[np.ndarray, "query k"],
    best_items: Int[np.ndarray, "query k"],
    rows: Int[np.ndarray, " entry"],
    items: Int[np.ndarray, " entry"],
    scores: Float[np.ndarray, " entry"],
) -> tuple[Float[np.ndarray, "query k"], Int[np.ndarray, "query k"]]:
    """The k best of each row's old ones and of new entries; ties go to the lower item."""
    count, k = best.shape
    rows = np.concatenate([np.repeat(np.arange(count), k), rows])
    items = np.concatenate([best_items.ravel(), items])
    scores = np.concatenate([best.ravel(), scores])
    order = np.lexsort((items, -scores, rows))
    heads = np.searchsorted(rows[order], np.arange(count))
    kept = order[heads[:, None] + np.arange(k)]
    return scores[kept], items[kept]


def score_rows(
    queries: Int[np.ndarray, "query dim"], items: Int[np.ndarray, "item dim"], block: int
) -> Iterator[Float[np.ndarray, " item"]]:
    """Yields each query's cosine to every item; `block` of them are computed at once."""
    for start in range(0, len(queries), block):
        yield from cosines(queries[start : start + block], items)
