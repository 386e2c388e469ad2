"""Self-information of text under a model: what the compressor ranks words by."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from pintern.errors import UserError
from pintern.models.decoder import Decoder
from pintern.models.sharding import fetch
from pintern.models.shared_prefix import token_nats

_AT_ONCE = 256  # positions


def surprisal_of(decoder: Decoder, bos: Sequence[int]) -> Callable[[Sequence[int]], np.ndarray]:
    """A function from token ids to `[token]` −log2 p(token | tokens before it), in bits.

    A first token without BOS before it is given the bits of a uniform guess. A text beyond the
    model's context is refused (UserError): a table of positions has nothing to give there.
    """

    def bits(ids: Sequence[int]) -> np.ndarray:
        tokens = jnp.asarray([*bos, *ids], jnp.int32)
        limit = decoder.config.max_positions
        if len(tokens) > limit:
            raise UserError(
                f"A text to be ranked has {len(tokens)} tokens; the model's context is {limit}.",
                "Use a shorter template, or a compressor that does not read it with the model.",
            )
        found = fetch(_nats(*nnx.split(decoder), tokens)) / np.log(2)
        if not bos:
            found = np.concatenate([[np.log2(decoder.config.vocab_size)], found])
        return found

    return bits


@functools.partial(jax.jit, static_argnums=0)
def _nats(
    graph: nnx.GraphDef, state: nnx.State, tokens: Int[Array, " token"]
) -> Float[Array, " token-1"]:
    decoder = nnx.merge(graph, state)
    hidden, _ = decoder(tokens[None, None], jnp.arange(len(tokens))[None, None])
    # The logits of a long text would be large: those of so many positions at a time are enough.
    ends = range(0, len(tokens) - 1, _AT_ONCE)
    parts = [slice(start, min(start + _AT_ONCE, len(tokens) - 1)) for start in ends]
    following = tokens[1:]
    nats = [token_nats(decoder.logits(hidden[0, 0, part]), following[part]) for part in parts]
    return jnp.concatenate([jnp.zeros(0), *nats])
