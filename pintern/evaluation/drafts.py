"""Guesses of the next tokens, from answers that are known and from the text itself.

A pass over the weights takes little longer for a few tokens than for one. So a request that is
served alone reads guesses behind its last token, and keeps what it would have chosen itself
(speculative decoding, 2211.17192; without a draft model: prompt lookup, and retrieval from a
datastore, REST, 2311.08252). The labelled pairs of a run are such a datastore: answers to one
prompt are much alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

CONTEXT = 4  # tokens that are compared; where more agree, hardly more guesses are right
_KNOWN = 1 << 16  # tokens of answers that are looked through


def known_tokens(answers: Sequence[Sequence[int]], eos: int) -> Int[np.ndarray, " known"]:
    """Answers one behind another, each with its end: the last ones, where they are very many.

    Args:
      answers: token ids, EOS left out.
      eos: id that ends a completion.
    """
    ids = [token for answer in answers for token in (*answer, eos, -1)]
    return np.asarray([-1, *ids[-_KNOWN:]], np.int32)


def guess(
    known: Int[Array, " known"],
    text: Int[Array, " slot"],
    made: Int[Array, " new"],
    count: Int[Array, ""],
    length: int,
) -> Int[Array, " draft"]:
    """What followed, the last time that the last tokens stood somewhere: −1 where there is nothing.

    The most of `CONTEXT` tokens that agree decide, and of such places the last one: one in the text
    itself before one in the answers.

    Args:
      known: see `known_tokens`.
      text: what was read, aligned right, at least `CONTEXT` times −1 in front.
      made: what was chosen; it counts up to `count`.
      count: tokens that were chosen, at least one.
      length: tokens to guess.
    """
    seen = jnp.concatenate([known, text, made])
    end = len(known) + len(text) + count
    last = jax.lax.dynamic_slice_in_dim(seen, end - CONTEXT, CONTEXT)
    agree, all_so_far = jnp.zeros_like(seen), jnp.ones_like(seen, bool)
    for back in range(CONTEXT):
        token = last[CONTEXT - 1 - back]
        all_so_far &= (jnp.roll(seen, back) == token) & (token >= 0)
        agree += all_so_far
    place = jnp.arange(len(seen))
    agree = jnp.where(place < end - 1, agree, 0)
    best = jnp.argmax(agree * len(seen) + place)
    follows = jnp.concatenate([seen, jnp.full(length, -1, seen.dtype)])
    found = jax.lax.dynamic_slice_in_dim(follows, best + 1, length)
    return jnp.where(agree[best] > 0, found, -1)
