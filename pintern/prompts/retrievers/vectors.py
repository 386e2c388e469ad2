"""Vectors of texts: who makes them, and the pool's on disk."""

import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from pintern.errors import UserError, first_line
from pintern.hub import resolve_other
from pintern.progress import Progress
from pintern.prompts.kept import held_by_all
from pintern.prompts.tokens import PieceTokenizer

# Texts between two reports of progress.
_AT_ONCE = 256

# Ids of texts to the mean of their last hidden states under the base model.
PooledStates = Callable[[Sequence[Sequence[int]]], Float[np.ndarray, "text dim"]]


class Encoder(NamedTuple):
    """Makes vectors of texts.

    Attributes:
      encode: texts to their vectors, float32.
      key: texts to a digest of all that their vectors follow from: the model, how it reads, and
        the texts.
    """

    encode: Callable[[Sequence[str]], Float[np.ndarray, "text dim"]]
    key: Callable[[Sequence[str]], str]


def base_encoder(tokenizer: PieceTokenizer, pooled: PooledStates, identity: str) -> Encoder:
    """Mean-pooled last hidden states of the base model, as in the IPT paper (2302.11521).

    Args:
      tokenizer: of the base.
      pooled: the base's states of token ids.
      identity: changes whenever `pooled` may give other numbers.
    """

    def key(texts: Sequence[str]) -> str:
        # Of the ids, so that an edited tokenizer is another key.
        return digest([identity, *map(str, tokenizer.encode_many(texts))])

    return Encoder(lambda texts: pooled(tokenizer.encode_many(texts)), key)


def sentence_encoder(model: str) -> Encoder:
    """A sentence-transformers model, which cuts a text that is beyond its own length.

    Args:
      model: folder or hub name.

    Raises:
      UserError: the package isn't installed, or the model can't be fetched or read.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise UserError(
            "config.prompt asks for sentence_transformers, which needs a package that isn't "
            f"installed ({error.name}).",
            "Install it: pip install 'pintern[dense]'.",
        ) from error
    folder = resolve_other("prompt.sentence_model", model)
    try:
        made = SentenceTransformer(folder, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"config.prompt.sentence_model={model} can't be loaded: {first_line(error)}",
            "Give a folder or hub name of a sentence-transformers model.",
        ) from error
    # A causal model, which loads all the same. Static embeddings have no such attribute.
    if getattr(made.tokenizer, "pad_token", "") is None:
        raise UserError(
            f"config.prompt.sentence_model={model} has no padding token, which batches of texts "
            "need.",
            "Give a folder or hub name of a sentence-transformers model.",
        )

    def encode(texts: Sequence[str]) -> np.ndarray:
        vectors = made.encode(list(texts), convert_to_numpy=True, show_progress_bar=False)
        return np.asarray(vectors, np.float32)

    def key(texts: Sequence[str]) -> str:
        weights = (tensor.detach().cpu().float().numpy() for tensor in made.state_dict().values())
        vocabulary = repr(sorted(made.tokenizer.get_vocab().items()))
        return digest([repr(made), vocabulary, *(w.tobytes() for w in weights), *texts])

    return Encoder(encode, key)


def vectors_of(
    texts: Sequence[str], encoder: Encoder, *, title: str = ""
) -> Float[np.ndarray, "text dim"]:
    """Vectors of texts, made in the order of their lengths; a title shows the progress."""
    # The longest first: neighbours in length share a batch, and the time left is no empty promise.
    order = sorted(range(len(texts)), key=lambda i: (-len(texts[i]), i))
    parts = []
    with Progress(title, len(texts), units="texts") if title else nullcontext() as bar:
        for start in range(0, len(texts), _AT_ONCE):
            parts.append(encoder.encode([texts[i] for i in order[start : start + _AT_ONCE]]))
            if bar is not None:
                bar.advance(len(parts[-1]))
    made = np.concatenate(parts)
    vectors = np.empty_like(made)
    vectors[order] = made
    return vectors


def cached_vectors(
    texts: Sequence[str], encoder: Encoder, folder: Path | None
) -> Float[np.ndarray, "text dim"]:
    """Vectors of texts, from the folder where they are there, else made and put there.

    A file is named by what its vectors follow from, so it never goes stale; a broken one is made
    again.
    """
    path = None if folder is None else folder / f"{encoder.key(texts)}.npz"
    found = None if path is None else held_by_all(_read(path, len(texts)), np.ndarray.tobytes)
    if found is None:
        found = vectors_of(texts, encoder, title="vectors of the pool")
        if path is not None:
            _write(path, found)
    return found


def _read(path: Path, count: int) -> np.ndarray | None:
    """The vectors in a file; None where there is none, or a broken one."""
    if not path.exists():
        return None
    try:
        # The archive carries a checksum, which is compared on reading.
        with np.load(path, allow_pickle=False) as file:
            vectors = file["vectors"]
    except Exception as error:  # what a broken archive raises is anybody's guess
        print(f"{path} is broken ({error}); it is made again.", file=sys.stderr)
        return None
    intact = vectors.dtype == np.float32 and vectors.ndim == 2 and len(vectors) == count
    return vectors if intact else None


def _write(path: Path, vectors: np.ndarray) -> None:
    """Writes through a file of this process's own, so that nobody ever reads half of it."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez(file, vectors=vectors)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        print(f"The vectors can't be kept in {path.parent}: {error.strerror}.", file=sys.stderr)


def digest(parts: Iterable[str | bytes]) -> str:
    """Changes with any part, and with where one part ends and the next begins."""
    made = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        made.update(len(data).to_bytes(8, "big"))
        made.update(data)
    return made.hexdigest()
