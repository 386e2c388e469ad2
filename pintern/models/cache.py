"""Keys and values of what was read so far, and the room that decoding writes into."""

from __future__ import annotations

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pintern.models.attention import KV
from pintern.models.experts import Routed

_ROW = -3  # axis of keys and values: row, slot, dim


@flax.struct.dataclass
class Cache:
    """Keys and values of what was read so far.

    Attributes:
      prefix: `[layer, group, kv_head, prefix_slot, dim]`, shared by the rows of a group, or None;
        of an unrolled decoder a tuple over the layers, without that axis. `rows` likewise.
      prefix_positions: `[group, prefix_slot]`, −1 where padded, or None.
      rows: `[layer, group, kv_head, row, slot, dim]`, or None before the first row token; with room
        for more, `[layer, group·kv_head, row, slot, dim]`, see `without_row_axis` too.
      row_positions: `[group, row, slot]`, −1 where padded or not yet written.
      length: slots of `rows` that are written.
      routed: what the routers did with the tokens read so far; None without experts.
    """

    prefix: KV | tuple[KV, ...] | None = None
    prefix_positions: Int[Array, "group prefix_slot"] | None = None
    rows: KV | tuple[KV, ...] | None = None
    row_positions: Int[Array, "group row slot"] | None = None
    length: Int[Array, ""] | int = 0
    routed: Routed | None = None

    def as_prefix(self) -> Cache:
        """Turns the cache of a one-row pass over a prefix into the prefix of what follows."""
        return Cache(
            prefix=jax.tree.map(lambda x: x[..., 0, :, :], self.rows),
            prefix_positions=self.row_positions[:, 0],
            routed=self.routed,
        )

    def with_room(self, slots: int) -> Cache:
        """Adds `slots` unwritten slots after the rows, for decoding."""

        def pad(x: Array) -> Array:
            x = merge_heads(x)
            return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, slots), (0, 0)])

        return self.replace(
            rows=jax.tree.map(pad, self.rows),
            row_positions=jnp.pad(
                self.row_positions, [(0, 0), (0, 0), (0, slots)], constant_values=-1
            ),
        )

    def without_row_axis(self) -> Cache:
        """A single row's room as `[layer, group·kv_head, slot, dim]`, to be read and written.

        XLA leaves an axis of one out of a product, and then writes every token twice: into the
        room as it is, and into a copy of it without that axis.
        """
        return self.replace(rows=jax.tree.map(lambda x: x.squeeze(_ROW), self.rows))

    def with_row_axis(self) -> Cache:
        """As before `without_row_axis`."""
        return self.replace(rows=jax.tree.map(lambda x: jnp.expand_dims(x, _ROW), self.rows))


def join_prefixes(
    read: Sequence[tuple[Cache, Int[Array, " #group"]]],
) -> tuple[Cache, Int[Array, " group"]]:
    """Prefixes that were read one by one as groups of one cache, and where their rows start.

    Shorter ones are padded, which nobody sees.
    """
    if len(read) == 1:
        return read[0]
    caches, starts = zip(*read, strict=True)
    start = jnp.concatenate(starts)
    there = [cache.prefix for cache in caches if cache.prefix is not None]
    if not there:
        return Cache(), start
    slots = max(prefix.shape[-2] for prefix in jax.tree.leaves(there))

    def longest(x: Array, length: int) -> Array:
        return jnp.pad(x[..., :length, :], [(0, 0)] * (x.ndim - 2) + [(0, slots - length), (0, 0)])

    def positions(cache: Cache) -> Array:
        if cache.prefix is None:
            return jnp.full((1, slots), -1)
        room = slots - cache.prefix_positions.shape[-1]
        return jnp.pad(cache.prefix_positions, [(0, 0), (0, room)], constant_values=-1)

    parts = [
        jax.tree.map(lambda x: longest(x, 0), there[0])
        if cache.prefix is None
        else jax.tree.map(lambda x: longest(x, x.shape[-2]), cache.prefix)
        for cache in caches
    ]
    return Cache(
        prefix=jax.tree.map(lambda *x: jnp.concatenate(x, -4), *parts),
        prefix_positions=jnp.concatenate([positions(cache) for cache in caches]),
    ), start


def write_slots(old: Array | None, new: Array, start: Int[Array, ""] | int, *, axis: int) -> Array:
    """`new` in place of `old` from slot `start` on; `new` itself where there is nothing yet."""
    if old is None:
        return new
    return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), start, axis)


def merge_heads(
    x: Float[Array, "*layer group kv_head row slot dim"],
) -> Float[Array, "*layer group*kv_head row slot dim"]:
    """Keys or values in the shape in which decoding writes and reads them."""
    *layer, group, heads, row, slot, dim = x.shape
    return x.reshape(*layer, group * heads, row, slot, dim)


def write_rows(rows: KV, new: KV, start: Int[Array, ""] | int) -> KV:
    """One layer's rows with room, and `[group, kv_head, row, slot, dim]` in it from `start` on."""

    def write(old: Array, x: Array) -> Array:
        x = merge_heads(x)
        x = x if x.ndim == old.ndim else x.squeeze(_ROW)
        return write_slots(old, x, start, axis=old.ndim - 2)

    return jax.tree.map(write, rows, new)
