"""Time and peak memory of finding each item's nearest others in a large pool.

    python -m benchmarks.retrieval                                   (20,000 × 20,000)
    python -m benchmarks.retrieval --items=100000 --queries=100000

Dense retrieval is measured on random vectors of --dim numbers, without the model that would make
them; BM25 on texts of --words words drawn by Zipf's law. Queries are the first items of the pool,
and each may be given anything but itself. Memory is the process's own at its highest.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable

import numpy as np
from absl import flags

from benchmarks.measure import peak_mb
from pintern import cli

ITEMS = flags.DEFINE_integer("items", 20_000, "Of the pool.", lower_bound=2)
QUERIES = flags.DEFINE_integer("queries", 20_000, "At most as many as items.", lower_bound=1)
DIM = flags.DEFINE_integer("dim", 192, "Of the vectors; 192 is the bundled model's.", lower_bound=1)
WORDS = flags.DEFINE_integer("words", 12, "Of a text, for BM25.", lower_bound=1)
K = flags.DEFINE_integer("k", 4, "Neighbours of each query.", lower_bound=1)
KINDS = flags.DEFINE_multi_enum("kind", ["dense", "bm25"], ["dense", "bm25"], "Which to run.")
SHARE = flags.DEFINE_float(
    "checked",
    0.001,
    "Share of queries compared with a full sort.",
    lower_bound=0.0,
    upper_bound=1.0,
)
flags.register_multi_flags_validator(
    ["items", "queries", "k"],
    lambda given: given["queries"] <= given["items"] > given["k"],
    "--items is to be at least --queries, and above --k.",
)


def main(_: list[str]) -> None:
    """Prints one table."""
    print(f"{platform.processor() or platform.machine()}, numpy {np.__version__}")
    print(
        f"{'kind':<6} {'items':>8} {'queries':>8} {'index s':>8} {'search s':>9} {'queries/s':>10} "
        f"{'index MB':>9} {'peak MB':>8} {'as a full sort':>15}"
    )
    for kind in KINDS.value:
        measure(kind, {"dense": dense, "bm25": bm25}[kind])


def measure(kind: str, make: Callable) -> None:
    """Prints one line."""
    empty = peak_mb()
    began = time.perf_counter()
    texts, retriever = make()
    retriever.neighbours(texts[:1], K.value)  # a lazy index is made now
    indexed, index_mb = time.perf_counter(), peak_mb() - empty
    queries = texts[: QUERIES.value]
    found = retriever.neighbours(queries, K.value, exclude=range(len(queries)))
    seconds = time.perf_counter() - indexed
    peak = peak_mb()
    chosen = np.random.default_rng(0).choice(
        len(queries), max(1, round(SHARE.value * len(queries))), replace=False
    )
    same = 0
    for query in chosen:
        scores = np.array(next(iter(retriever.scores([queries[query]]))))
        scores[query] = -np.inf
        same += np.argsort(-scores, kind="stable")[: K.value].tolist() == found[query]
    print(
        f"{kind:<6} {len(texts):>8} {len(queries):>8} {indexed - began:>8.1f} {seconds:>9.1f} "
        f"{len(queries) / seconds:>10.0f} {index_mb:>9.0f} {peak:>8.0f} "
        f"{f'{same} of {len(chosen)}':>15}",
        flush=True,
    )


def dense() -> tuple[list[str], object]:
    """Texts that stand for their vectors, and their retriever."""
    from pintern.prompts.retrievers.dense import DenseRetriever
    from pintern.prompts.retrievers.vectors import Encoder

    def encode(texts: list[str]) -> np.ndarray:
        rows = [np.random.default_rng(int(t)).normal(size=DIM.value) for t in texts]
        return np.array(rows, np.float32)

    texts = [str(i) for i in range(ITEMS.value)]
    return texts, DenseRetriever(texts, Encoder(encode, key=repr))


def bm25() -> tuple[list[str], object]:
    """Texts of drawn words, and their retriever."""
    from pintern.prompts.retrievers.lexical import BM25Retriever

    vocabulary = np.arange(1, 20_001)
    share = (1 / vocabulary) / (1 / vocabulary).sum()
    drawn = np.random.default_rng(0).choice(vocabulary, (ITEMS.value, WORDS.value), p=share)
    texts = [" ".join(f"w{word}" for word in row) for row in drawn]
    return texts, BM25Retriever(texts)


if __name__ == "__main__":
    cli.run(main)
