"""Self-information of text under a model: what the compressor ranks words by."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from pintern.errors import UserError
from pintern.models.decoder import Decoder
from pintern.models.sharding import fetch


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
        # In chunks of the vocabulary's width the logits of a long text would be large: one at a
        # time per 256 positions is enough.
        hidden, _ = decoder(tokens[None, None], jnp.arange(len(tokens))[None, None])
        log_probs = []
        for start in range(0, len(tokens) - 1, 256):
            part = hidden[0, 0, start : min(start + 256, len(tokens) - 1)]
            rows = jax.nn.log_softmax(decoder.logits(part), axis=-1)
            following = tokens[start + 1 : start + 1 + part.shape[0]]
            log_probs.append(jnp.take_along_axis(rows, following[:, None], axis=-1)[:, 0])
        found = -np.concatenate([fetch(p) for p in log_probs]) / np.log(2)
        if not bos:
            found = np.concatenate([[np.log2(decoder.config.vocab_size)], found])
        return found

    return bits
