"""The programs that read and choose: prefixes read once, rows behind them, tokens in a loop."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from pintern import compiling
from pintern.adapters.adapter import Adapter
from pintern.evaluation.drafts import guess
from pintern.evaluation.places import Places, Read
from pintern.evaluation.sampling import Sampling, choose
from pintern.models.cache import Cache
from pintern.models.decoder import Decoder
from pintern.models.shared_prefix import positions_of, prefill
from pintern.models.split import SplitDecoder


@compiling.jitted(compiling.READ)
def read_prefix(
    base: SplitDecoder, adapter: Adapter | None, prefix: Int[Array, "group slot"]
) -> tuple[Cache, Int[Array, " group"]]:
    """Reads soft prompt and prefix: cache, and the position where rows start."""
    return prefill(base.merge(), prefix, jnp.ones_like(prefix), adapter=adapter)


@compiling.jitted(compiling.READ)
def read_rows(
    base: SplitDecoder,
    adapter: Adapter | None,
    prefilled: tuple[Cache, Int[Array, " group"]],
    tokens: Int[Array, "group row slot"],
    valid: Int[Array, "group row slot"],
) -> Read:
    """Reads rows behind their group's prefix."""
    decoder = base.merge()
    cache, start = prefilled
    positions = positions_of(valid, start[:, None])
    last = valid.shape[-1] - 1 - jnp.argmax(valid[..., ::-1], axis=-1)
    hidden, cache = decoder(
        tokens, positions, cache, wanted=last[..., None], ordered=True, adapter=adapter
    )
    logits = decoder.logits(hidden[:, :, 0])
    real = jnp.where(valid > 0, tokens, -1)
    return Read(real, cache.rows, cache.row_positions, logits, positions.max(-1) + 1)


# The places are given away: otherwise each call would cost a copy of the cache.
@compiling.jitted(compiling.LOOP, static_argnums=0, donate_argnums=3)
def advance(
    sampling: Sampling,
    base: SplitDecoder,
    adapter: Adapter | None,
    places: Places,
    known: Int[Array, " known"],
    ended: Int[Array, ""] | int,
    steps: Int[Array, ""] | int,
) -> Places:
    """Chooses tokens until so many places have `ended`, or in so many `steps`.

    A step chooses a token for each row; where `places.text` is there, for one row alone, a token
    and as many more as were guessed rightly from `known` (see `drafts.guess`).
    """
    decoder = base.merge()
    until = places.clock + steps

    def goes_on(places: Places) -> Bool[Array, ""]:
        return (places.clock < until) & (places.ended(sampling).sum() < ended)

    def step(places: Places) -> Places:
        if places.text is None:
            return _one_token(sampling, decoder, adapter, places)
        return _some_tokens(sampling, decoder, adapter, places, known)

    cache = places.cache.replace(length=0, routed=None)
    if places.token.shape[1] > 1:
        return jax.lax.while_loop(goes_on, step, places._replace(cache=cache))
    places = places._replace(cache=cache.without_row_axis())
    places = jax.lax.while_loop(goes_on, step, places)
    return places._replace(cache=places.cache.with_row_axis())


def _one_token(
    sampling: Sampling, decoder: Decoder, adapter: Adapter | None, places: Places
) -> Places:
    limit = sampling.max_new_tokens
    slots = places.cache.row_positions.shape[-1] - limit
    cache, clock, position, token, count, made, keys, _ = places
    lives = ~places.ended(sampling)
    cache = cache.replace(length=slots + clock % limit)
    hidden, cache = decoder(
        token[..., None], jnp.where(lives, position, -1)[..., None], cache, adapter=adapter
    )
    logits = decoder.logits(hidden[:, :, 0])
    chosen = choose(
        sampling, logits.reshape(-1, logits.shape[-1]), keys.reshape(-1), count.reshape(-1)
    ).reshape(token.shape)
    here = (jnp.arange(limit) == count[..., None]) & lives[..., None]
    return places._replace(
        cache=cache.replace(length=0, routed=None),
        clock=clock + 1,
        position=position + lives,
        token=jnp.where(lives, chosen, token),
        count=count + lives,
        made=jnp.where(here, chosen[..., None], made),
    )


def _some_tokens(
    sampling: Sampling,
    decoder: Decoder,
    adapter: Adapter | None,
    places: Places,
    known: Int[Array, " known"],
) -> Places:
    """Of the only row, which lives. Its tokens lie in order: what was guessed wrongly is written
    over before anything reads it, since the next step writes no fewer slots than are left of it.
    """
    limit, drafted = sampling.max_new_tokens, sampling.draft_tokens
    slots = places.cache.row_positions.shape[-1] - limit - drafted
    cache, _, position, token, count, made, keys, text = places
    number = count[0, 0]
    guessed = guess(known, text[0, 0], made[0, 0], number, drafted)
    ahead = jnp.arange(1 + drafted)
    read = jnp.concatenate([token[0], jnp.maximum(guessed, 0)])
    hidden, cache = decoder(
        read[None, None],
        position[..., None] + ahead,
        cache.replace(length=slots + number - 1),
        adapter=adapter,
    )
    chosen = choose(
        sampling,
        decoder.logits(hidden[0, 0]),
        jnp.broadcast_to(keys[0], ahead.shape),
        number + ahead,
    )
    # A token holds if all guesses before it were right, and none of them was the end.
    right = (guessed == chosen[:-1]) & (guessed != sampling.eos)
    holds = jnp.concatenate([jnp.ones(1, bool), jnp.cumprod(right) > 0])
    holds &= number + ahead < limit
    gained = holds.sum()
    return places._replace(
        cache=cache.replace(length=0, routed=None),
        clock=places.clock + 1,
        position=position + gained,
        token=chosen[gained - 1][None, None],
        count=count + gained,
        made=made.at[0, 0, jnp.where(holds, number + ahead, limit)].set(chosen, mode="drop"),
    )
