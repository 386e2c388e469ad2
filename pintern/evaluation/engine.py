"""The programs of decoding: prefixes read once, rows admitted as others end, tokens in a loop.

Shapes never change while a decoder serves: `[group, row]` places are taken by one request after
another. Each group stands behind a prefix, and may have an adapter, of its own.

A place has slots for the longest row it may be given, and behind them a ring of as many slots as a
completion may have tokens. All places write to the same slot of the ring, the next one with every
token, so that a token costs one write for all rows; whoever is admitted later begins further on
and goes around the end. No row lives longer than the ring is, so none overwrites its own tokens,
and what is left of an earlier tenant is hidden by its position, −1.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from pintern import compiling
from pintern.adapters.adapter import Adapter
from pintern.evaluation.sampling import Sampling, choose
from pintern.models.attention import KV
from pintern.models.cache import Cache, merge_heads
from pintern.models.shared_prefix import positions_of, prefill
from pintern.models.split import SplitDecoder


class Places(NamedTuple):
    """Rows on their way, between two tokens.

    Attributes:
      cache: the groups' prefixes and what the rows have read.
      clock: tokens chosen since the beginning: the next slot of the ring, but for going around.
      position: of each row's last chosen token, which is not read yet.
      token: the last chosen one; EOS in a place that is free.
      count: tokens that the row's present tenant has chosen.
      made: all of them; slots still to come hold EOS.
      keys: random stream of each tenant.
    """

    cache: Cache
    clock: Int[Array, ""]
    position: Int[Array, "group row"]
    token: Int[Array, "group row"]
    count: Int[Array, "group row"]
    made: Int[Array, "group row new"]
    keys: Key[Array, "group row"]

    def ended(self, sampling: Sampling) -> Bool[Array, "group row"]:
        """Which places have nothing more to choose."""
        return (self.token == sampling.eos) | (self.count >= sampling.max_new_tokens)


class Read(NamedTuple):
    """Rows that were read and are to be admitted.

    Attributes:
      rows: keys and values, `[layer, group, kv_head, row, slot, dim]`, or a tuple over the layers.
      row_positions: of their slots, −1 where padded.
      logits: of each row's first token to come.
      position: of that token.
    """

    rows: KV | tuple[KV, ...]
    row_positions: Int[Array, "group row slot"]
    logits: Float[Array, "group row vocab"]
    position: Int[Array, "group row"]


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
    return Read(cache.rows, cache.row_positions, logits, positions.max(-1) + 1)


# The rows' shapes are all that is used, but they tie the places to their device: `admit` would be
# compiled once for loose places and once for tied ones.
@functools.partial(jax.jit, static_argnums=(0, 3, 4), keep_unused=True)
def no_rows(
    sampling: Sampling, prefilled: tuple[Cache, Array], read: Read, rows: int, slots: int
) -> Places:
    """Free places behind the prefixes.

    Args:
      sampling: how tokens are chosen.
      prefilled: the prefixes.
      read: any rows, for the shapes of their keys and values.
      rows: places of each group.
      slots: of the longest row that a place may be given.
    """
    limit, group = sampling.max_new_tokens, read.position.shape[0]

    def room(x: Array) -> Array:
        *layer, group, heads, _, _, dim = x.shape
        return jnp.zeros((*layer, group * heads, rows, slots + limit, dim), x.dtype)

    def all_of(value: int, *shape: int) -> Int[Array, ...]:
        return jnp.full((group, rows, *shape), value, jnp.int32)

    cache = prefilled[0].replace(
        rows=jax.tree.map(room, read.rows), row_positions=all_of(-1, slots + limit), routed=None
    )
    keys = jax.random.split(jax.random.key(0), (group, rows))
    return Places(
        cache,
        jnp.int32(0),
        all_of(0),
        all_of(sampling.eos),
        all_of(limit),
        all_of(sampling.eos, limit),
        keys,
    )


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def admit(
    sampling: Sampling,
    places: Places,
    read: Read,
    where: Int[Array, "group new_row"],
    keys: Key[Array, "group new_row"],
) -> Places:
    """Gives places to rows, and chooses their first tokens.

    Args:
      sampling: how tokens are chosen.
      places: of which those given are free.
      read: the rows.
      where: the place in its group that each row is given; one that doesn't exist leaves it out.
      keys: random stream of each row.
    """
    shape = read.position.shape
    first = choose(
        sampling,
        read.logits.reshape(-1, read.logits.shape[-1]),
        keys.reshape(-1),
        jnp.zeros(keys.size, jnp.int32),
    ).reshape(shape)

    def put(old: Array, new: Array) -> Array:
        return jax.vmap(lambda o, n, w: o.at[w].set(n, mode="drop"))(old, new, where)

    def put_slots(old: Array, new: Array) -> Array:
        heads = new.shape[-4]
        at = jnp.repeat(where, heads, axis=0)  # of each group and head
        if old.ndim == 5:
            return jax.vmap(_put, (0, 0, None))(old, merge_heads(new), at)
        return _put(old, merge_heads(new), at)

    cache, limit = places.cache, sampling.max_new_tokens
    room = cache.row_positions.shape[-1] - read.row_positions.shape[-1]
    positions = jnp.pad(read.row_positions, [(0, 0), (0, 0), (0, room)], constant_values=-1)
    made = jnp.full((*shape, limit), sampling.eos, jnp.int32).at[..., 0].set(first)
    return Places(
        cache.replace(
            rows=jax.tree.map(put_slots, cache.rows, read.rows),
            row_positions=put(cache.row_positions, positions),
        ),
        places.clock,
        put(places.position, read.position),
        put(places.token, first),
        put(places.count, jnp.ones(shape, jnp.int32)),
        put(places.made, made),
        put(places.keys, keys),
    )


def _put(
    old: Float[Array, "head row slot dim"],
    new: Float[Array, "head new_row new_slot dim"],
    where: Int[Array, "head new_row"],
) -> Float[Array, "head row slot dim"]:
    slots = new.shape[2]
    return jax.vmap(lambda o, n, w: o.at[w, :slots].set(n, mode="drop"))(old, new, where)


@functools.partial(jax.jit, static_argnums=0)
def begin(
    sampling: Sampling,
    prefilled: tuple[Cache, Array],
    read: Read,
    keys: Key[Array, "group row"],
) -> Places:
    """Places of which each is given to one of the rows."""
    rows, slots = read.row_positions.shape[1:]
    where = jnp.broadcast_to(jnp.arange(rows), read.position.shape)
    return admit(sampling, no_rows(sampling, prefilled, read, rows, slots), read, where, keys)


# The places are given away: otherwise each call would cost a copy of the cache.
@compiling.jitted(compiling.LOOP, static_argnums=0, donate_argnums=3)
def advance(
    sampling: Sampling,
    base: SplitDecoder,
    adapter: Adapter | None,
    places: Places,
    ended: Int[Array, ""] | int,
    steps: Int[Array, ""] | int,
) -> Places:
    """Chooses tokens until so many places have `ended`, or for so many `steps`."""
    decoder = base.merge()
    limit = sampling.max_new_tokens
    slots = places.cache.row_positions.shape[-1] - limit
    until = places.clock + steps

    def goes_on(places: Places) -> Bool[Array, ""]:
        return (places.clock < until) & (places.ended(sampling).sum() < ended)

    def one_token(places: Places) -> Places:
        cache, clock, position, token, count, made, keys = places
        lives = ~places.ended(sampling)
        cache = cache.replace(length=slots + clock % limit)
        hidden, cache = decoder(
            token[..., None], jnp.where(lives, position, -1)[..., None], cache, adapter=adapter
        )
        cache = cache.replace(length=0, routed=None)
        logits = decoder.logits(hidden[:, :, 0])
        chosen = choose(
            sampling, logits.reshape(-1, logits.shape[-1]), keys.reshape(-1), count.reshape(-1)
        ).reshape(token.shape)
        here = (jnp.arange(limit) == count[..., None]) & lives[..., None]
        return Places(
            cache,
            clock + 1,
            position + lives,
            jnp.where(lives, chosen, token),
            count + lives,
            jnp.where(here, chosen[..., None], made),
            keys,
        )

    cache = places.cache.replace(length=0, routed=None)
    if places.token.shape[1] > 1:
        return jax.lax.while_loop(goes_on, one_token, places._replace(cache=cache))
    places = places._replace(cache=cache.without_row_axis())
    places = jax.lax.while_loop(goes_on, one_token, places)
    return places._replace(cache=places.cache.with_row_axis())
