"""Places of rows on their way, and how rows are given them.

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

from pintern.evaluation.drafts import CONTEXT
from pintern.evaluation.sampling import Sampling, choose
from pintern.models.attention import KV
from pintern.models.cache import Cache, merge_heads


class Places(NamedTuple):
    """Rows on their way, between two tokens.

    Attributes:
      cache: the groups' prefixes and what the rows have read.
      clock: steps since the beginning. One token each: the next slot of the ring, but for going
        around. With guesses a step may choose several, and slots go by `count`.
      position: of each row's last chosen token, which is not read yet.
      token: the last chosen one; EOS in a place that is free.
      count: tokens that the row's present tenant has chosen.
      made: all of them; slots still to come hold EOS.
      keys: random stream of each tenant.
      text: what the tenant's row holds, aligned right behind −1, of which there are `CONTEXT` at
        least; None where nothing is guessed.
    """

    cache: Cache
    clock: Int[Array, ""]
    position: Int[Array, "group row"]
    token: Int[Array, "group row"]
    count: Int[Array, "group row"]
    made: Int[Array, "group row new"]
    keys: Key[Array, "group row"]
    text: Int[Array, "group row text"] | None = None

    def ended(self, sampling: Sampling) -> Bool[Array, "group row"]:
        """Which places have nothing more to choose."""
        return (self.token == sampling.eos) | (self.count >= sampling.max_new_tokens)


class Read(NamedTuple):
    """Rows that were read and are to be admitted.

    Attributes:
      tokens: that were read, −1 where padded.
      rows: keys and values, `[layer, group, kv_head, row, slot, dim]`, or a tuple over the layers.
      row_positions: of their slots, −1 where padded.
      logits: of each row's first token to come.
      position: of that token.
    """

    tokens: Int[Array, "group row slot"]
    rows: KV | tuple[KV, ...]
    row_positions: Int[Array, "group row slot"]
    logits: Float[Array, "group row vocab"]
    position: Int[Array, "group row"]


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
    drafted = sampling.draft_tokens if group * rows == 1 else 0
    spare = limit + drafted

    def room(x: Array) -> Array:
        *layer, group, heads, _, _, dim = x.shape
        return jnp.zeros((*layer, group * heads, rows, slots + spare, dim), x.dtype)

    def all_of(value: int, *shape: int) -> Int[Array, ...]:
        return jnp.full((group, rows, *shape), value, jnp.int32)

    cache = prefilled[0].replace(
        rows=jax.tree.map(room, read.rows), row_positions=all_of(-1, slots + spare), routed=None
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
        all_of(-1, CONTEXT + slots) if drafted else None,
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
        None if places.text is None else put(places.text, _aligned(read.tokens, places.text)),
    )


def _aligned(
    tokens: Int[Array, "group row slot"], like: Int[Array, "1 1 text"]
) -> Int[Array, "group row text"]:
    """Rows of tokens, padded with −1, moved to the right of as many places as `like` has."""
    room = like.shape[-1] - tokens.shape[-1]
    padding = (tokens < 0).sum(-1)
    wide = jnp.pad(tokens, [(0, 0), (0, 0), (room, 0)], constant_values=-1)
    return jax.vmap(jax.vmap(jnp.roll))(wide, padding)


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
