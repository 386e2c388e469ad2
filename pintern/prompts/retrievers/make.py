"""The retriever that a config names."""

from collections.abc import Callable, Sequence
from pathlib import Path

from pintern.errors import UserError
from pintern.prompts.kept import LARGE
from pintern.prompts.retrievers.band import SimilarityBandRetriever
from pintern.prompts.retrievers.controls import FixedRetriever, RandomRetriever
from pintern.prompts.retrievers.dense import DenseRetriever
from pintern.prompts.retrievers.kept import KeptNeighbours
from pintern.prompts.retrievers.lexical import BM25Retriever, bm25_identity
from pintern.prompts.retrievers.pool import Retriever
from pintern.prompts.retrievers.vectors import Encoder, sentence_encoder

SIMILARITIES = ("bm25", "dense", "sentence_transformers")
RETRIEVERS = (*SIMILARITIES, "similarity_band", "random", "fixed")

# Texts to what, with the texts, a retriever's answers follow from.
Identity = Callable[[Sequence[str]], str]


def make_retriever(
    kind: str,
    pool: Sequence[str],
    *,
    seed: int,
    encoder: Encoder,
    sentence_model: str = "",
    similarity: str = "dense",
    quantile: float = 1.0,
    fixed_shots: Sequence[int] = (),
    cache: Path | None = None,
) -> Retriever:
    """Retriever over a pool of query texts.

    Args:
      kind: one of `RETRIEVERS`.
      pool: texts of the training queries, in the order that indices refer to.
      seed: of `random`; the others have no use for it.
      encoder: of `dense`: the base model's.
      sentence_model: of `sentence_transformers`: a folder or hub name.
      similarity: of `similarity_band`: one of `SIMILARITIES`.
      quantile: of `similarity_band`.
      fixed_shots: of `fixed`: indices; empty is the first of the pool.
      cache: folder for vectors of the pool, or its index; and, of a large pool, for the neighbours
        of its items.

    Raises:
      UserError: an unknown kind, or see the retrievers.
    """

    def scorer(kind: str) -> tuple[BM25Retriever | DenseRetriever, Identity]:
        if kind == "bm25":
            return BM25Retriever(pool, cache), bm25_identity
        made = encoder if kind == "dense" else sentence_encoder(sentence_model)
        return DenseRetriever(pool, made, cache), made.key

    match kind:
        case "bm25" | "dense" | "sentence_transformers":
            retriever, identity = scorer(kind)
            large = cache is not None and len(pool) >= LARGE
            return KeptNeighbours(retriever, identity, cache) if large else retriever
        case "similarity_band" if similarity in SIMILARITIES:
            return SimilarityBandRetriever(scorer(similarity)[0], quantile)
        case "similarity_band":
            raise UserError(
                f"Unknown similarity {similarity!r}.", f"Use one of: {', '.join(SIMILARITIES)}."
            )
        case "random":
            return RandomRetriever(pool, seed)
        case "fixed":
            return FixedRetriever(pool, fixed_shots)
    raise UserError(f"Unknown retriever {kind!r}.", f"Use one of: {', '.join(RETRIEVERS)}.")
