"""Mean-pooled hidden states of texts: the vectors of dense retrieval (2302.11521)."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from pintern.errors import UserError
from pintern.models.decoder import Decoder
from pintern.models.sharding import fetch

# Slots of a batch: rows times width.
_SLOTS = 4096
_NARROWEST = 16


def pooled_states_of(
    decoder: Decoder, bos: Sequence[int]
) -> Callable[[Sequence[Sequence[int]]], np.ndarray]:
    """A function from the ids of texts to `[text, model]` means of their last hidden states.

    The mean is over the text's own tokens. BOS is read first and left out: its state says nothing
    of the text. A text without tokens has the zero vector. One beyond the model's context is
    refused (UserError).
    """
    graph, state = nnx.split(decoder)
    limit = decoder.config.max_positions

    @jax.jit
    def pool(
        state: nnx.State,
        tokens: Int[Array, "1 row slot"],
        positions: Int[Array, "1 row slot"],
    ) -> Float[Array, "row model"]:
        hidden, _ = nnx.merge(graph, state)(tokens, positions)
        counted = (positions[0] >= len(bos))[..., None]  # padding stands at −1
        total = jnp.where(counted, hidden[0].astype(jnp.float32), 0).sum(axis=1)
        return total / jnp.maximum(counted.sum(axis=1), 1)

    def states(texts: Sequence[Sequence[int]]) -> np.ndarray:
        lengths = [len(bos) + len(ids) for ids in texts]
        if lengths and max(lengths) > limit:
            raise UserError(
                f"A query to be embedded has {max(lengths)} tokens; the model's context is "
                f"{limit}.",
                "Leave such queries out, or use a retriever that does not read them with the "
                "model.",
            )
        found = np.zeros((len(texts), decoder.config.model_dim), np.float32)
        widths = np.array([_width(length, limit) for length in lengths], int)
        for width in np.unique(widths):
            members = np.flatnonzero(widths == width)
            most = max(1, _SLOTS // int(width))
            for start in range(0, len(members), most):
                chosen = members[start : start + most]
                # A power of two, so that programs are few.
                rows = min(most, 1 << (len(chosen) - 1).bit_length())
                tokens = np.zeros((1, rows, width), np.int32)
                positions = np.full((1, rows, width), -1, np.int32)
                for row, text in enumerate(chosen):
                    ids = [*bos, *texts[text]]
                    tokens[0, row, : len(ids)] = ids
                    positions[0, row, : len(ids)] = np.arange(len(ids))
                found[chosen] = fetch(pool(state, tokens, positions))[: len(chosen)]
        return found

    return states


def _width(length: int, limit: int) -> int:
    return min(max(_NARROWEST, 1 << (length - 1).bit_length()), limit)
