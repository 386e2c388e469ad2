"""The retriever that a config names."""

from collections.abc import Sequence
from pathlib import Path

from pintern.errors import UserError
from pintern.prompts.retrievers.band import SimilarityBandRetriever
from pintern.prompts.retrievers.controls import FixedRetriever, RandomRetriever
from pintern.prompts.retrievers.dense import DenseRetriever
from pintern.prompts.retrievers.lexical import BM25Retriever
from pintern.prompts.retrievers.pool import Retriever
from pintern.prompts.retrievers.vectors import Encoder, sentence_encoder

SIMILARITIES = ("bm25", "dense", "sentence_transformers")
RETRIEVERS = (*SIMILARITIES, "similarity_band", "random", "fixed")


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
      cache: folder for vectors of the pool, or its index.

    Raises:
      UserError: an unknown kind, a pool with fewer than 2 items, or see the retrievers.
    """
    match kind:
        case "bm25":
            return BM25Retriever(pool, cache)
        case "dense":
            return DenseRetriever(pool, encoder, cache)
        case "sentence_transformers":
            return DenseRetriever(pool, sentence_encoder(sentence_model), cache)
        case "similarity_band" if similarity in SIMILARITIES:
            scorer = make_retriever(
                similarity,
                pool,
                seed=seed,
                encoder=encoder,
                sentence_model=sentence_model,
                cache=cache,
            )
            return SimilarityBandRetriever(scorer, quantile)
        case "similarity_band":
            raise UserError(
                f"Unknown similarity {similarity!r}.", f"Use one of: {', '.join(SIMILARITIES)}."
            )
        case "random":
            return RandomRetriever(pool, seed)
        case "fixed":
            return FixedRetriever(pool, fixed_shots)
    raise UserError(f"Unknown retriever {kind!r}.", f"Use one of: {', '.join(RETRIEVERS)}.")
