"""How the next token is chosen from its logits: the likeliest, or a draw from the likelier ones."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


class Sampling(NamedTuple):
    """How the next token is chosen.

    Attributes:
      max_new_tokens: longest completion.
      eos: id that ends a completion.
      temperature: 0 takes the likeliest token.
      top_k: draw from so many of the likeliest tokens; 0 is all.
      top_p: draw from the fewest tokens that hold this share of the probability (1904.09751).
      also_end: further ids that end a completion, as instruction-tuned checkpoints have them.
      draft_tokens: guesses that a request served alone reads at a time (`evaluation.drafts`); they
        change how fast tokens are chosen, and not which.
    """

    max_new_tokens: int
    eos: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    also_end: tuple[int, ...] = ()
    draft_tokens: int = 0


def choose(
    sampling: Sampling,
    logits: Float[Array, "row vocab"],
    keys: Key[Array, " row"],
    places: Int[Array, " row"],
) -> Int[Array, " row"]:
    """The next token of each row.

    Args:
      sampling: how.
      logits: of the next token.
      keys: one stream per row.
      places: number of the token in each completion: what it draws from the stream.
    """
    if sampling.temperature == 0:
        chosen = likeliest(logits)
    else:
        step_keys = jax.vmap(jax.random.fold_in)(keys, places)
        allowed = restrict(logits / sampling.temperature, sampling.top_k, sampling.top_p)
        chosen = jax.vmap(jax.random.categorical)(step_keys, allowed)
    if sampling.also_end:
        ends = jnp.isin(chosen, jnp.asarray(sampling.also_end))
        chosen = jnp.where(ends, sampling.eos, chosen)
    return chosen.astype(jnp.int32)


def likeliest(logits: Float[Array, "row vocab"]) -> Int[Array, " row"]:
    """Id of the highest logit, the first of equal ones; of a row with NaN, the last id.

    XLA:CPU looks for values and places together, as `argmax` does, one element at a time; and
    decoding's logits lie id by id there (`models.linear.by_outputs`), so by columns here.
    """
    columns = logits.T
    ids = jnp.arange(len(columns))[:, None]
    found = jnp.where(columns == columns.max(0), ids, len(columns) - 1)
    return found.min(0)


def restrict(
    logits: Float[Array, "row vocab"], top_k: int, top_p: float
) -> Float[Array, "row vocab"]:
    """−∞ for tokens outside the `top_k` likeliest, then outside the nucleus of `top_p`.

    Tokens that are as likely as the last one admitted are admitted too.
    """
    if 0 < top_k < logits.shape[-1]:
        last = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < last, -jnp.inf, logits)
    if top_p < 1:
        falling = jnp.sort(logits, axis=-1, descending=True)
        shares = jax.nn.softmax(falling, axis=-1)
        inside = jnp.cumsum(shares, axis=-1) - shares < top_p  # of those before it
        last = jnp.where(inside, falling, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits < last, -jnp.inf, logits)
    return logits
