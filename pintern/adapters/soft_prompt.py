"""First values of a soft prompt: random, from the vocabulary, from a text, or from a file.

Where a soft prompt starts matters as much as its learning rate (2104.08691), so it is a choice.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy, in which safetensors returns it)
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from safetensors import SafetensorError, safe_open

from pintern.errors import UserError

# The name that Hugging Face's PEFT gives a learned prompt.
TENSOR = "prompt_embeddings"
_READABLE = ("F64", "F32", "F16", "BF16")


def init_soft_prompt(
    key: PRNGKeyArray,
    length: int,
    *,
    init: Literal["uniform", "vocabulary", "text", "file"],
    embedding: Float[Array, "vocab model"],
    text_ids: Sequence[int] | None = None,
    path: Path | None = None,
) -> Float[Array, "virtual model"]:
    """First values of `length` virtual tokens, in float32.

    Args:
      key: random key; `text` and `file` don't use it.
      length: number of virtual tokens, at least 1.
      init: where the values come from:
        `uniform`: each entry from U(−√3·σ, √3·σ), where σ is the standard deviation of the
          embedding table's entries: the spread of a real token's embedding, whatever its scale;
        `vocabulary`: rows of the embedding table, drawn without replacement (with, where `length`
          exceeds the vocabulary);
        `text`: the embeddings of `text_ids`, repeated from their start or cut to `length`;
        `file`: the tensor `prompt_embeddings` `[length, model]` of a safetensors file.
      embedding: the base model's embedding table.
      text_ids: token ids, for `text`.
      path: safetensors file, for `file`.

    Raises:
      UserError: a length below 1, an unknown `init`, or its source is missing or doesn't fit.
    """
    if length < 1:
        raise UserError(f"The soft prompt's length is {length}; it must be at least 1.")
    if init == "uniform":
        bound = 3**0.5 * jnp.std(embedding.astype(jnp.float32))
        return jax.random.uniform(key, (length, embedding.shape[1]), jnp.float32, -bound, bound)
    if init == "vocabulary":
        vocab = embedding.shape[0]
        ids = jax.random.choice(key, vocab, (length,), replace=length > vocab)
        return embedding[ids].astype(jnp.float32)
    if init == "text":
        return embedding[_text_ids(text_ids, length, embedding.shape[0])].astype(jnp.float32)
    if init == "file":
        return jnp.asarray(_read(path, (length, embedding.shape[1])), jnp.float32)
    raise UserError(
        f"Soft prompt init is {init!r}.", "Expected 'uniform', 'vocabulary', 'text' or 'file'."
    )


def _text_ids(text_ids: Sequence[int] | None, length: int, vocab: int) -> np.ndarray:
    if not text_ids:
        raise UserError(
            "Soft prompt init is 'text', but the text is empty or not given.",
            "Give a text of at least one token, or another init.",
        )
    outside = [i for i in text_ids if not 0 <= i < vocab]
    if outside:
        raise UserError(
            f"The soft prompt's text has token id {outside[0]}, but the embedding has {vocab} rows."
        )
    return np.resize(np.asarray(text_ids), length)


def _read(path: Path | None, shape: tuple[int, int]) -> np.ndarray:
    if path is None:
        raise UserError("Soft prompt init is 'file', but no path is given.")
    if not Path(path).is_file():
        raise UserError(
            f"No soft prompt file {str(path)!r}.",
            f"Expected a safetensors file with a tensor {TENSOR!r}.",
        )
    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            kind = file.get_slice(TENSOR).get_dtype() if TENSOR in names else None
            values = file.get_tensor(TENSOR) if kind in _READABLE else None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated, or no safetensors file: {error}.") from error
    if kind is None:
        raise UserError(f"{path} has no tensor {TENSOR!r}.", f"It has: {', '.join(names)}.")
    if values is None:
        raise UserError(
            f"{TENSOR} in {path} is stored as {kind}.", f"It is read from {', '.join(_READABLE)}."
        )
    if values.shape != shape:
        raise UserError(
            f"{TENSOR} in {path} has shape {values.shape}; expected {shape}.",
            "These are the number of virtual tokens and the width of the base model.",
        )
    if not np.isfinite(values.astype(np.float32)).all():
        raise UserError(f"{TENSOR} in {path} holds NaN or infinite values.")
    return values
