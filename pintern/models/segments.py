"""One softmax over the scores of several segments of keys, and its derivative.

Nothing as large as the scores is kept for the backward pass, copied or joined: they are made again
there. With what the softmax was normalised by and what came out of it at hand, that takes one pass
over them, without the maximum, the sum and the weighted sum (FlashAttention, 2205.14135, appendix
B.2).

A CPU goes through many scores one key and value head after another: what one product writes, the
next operation finds in the cache.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pintern.models import alone

# Finite, so that a row which is all padding yields numbers and not NaN.
_MASKED = -1e30
_MANY = 1 << 22  # scores of all heads, 16 MiB

Queries = Float[Array, "group kv_head row head query dim"]  # or what came out at them
Scores = Float[Array, "group kv_head row head query slot"]
Slots = Float[Array, "group kv_head *owner slot dim"]  # keys or values, as in `Segment`

# Of scores and distances: what a family makes of its scores before the softmax.
Bend = Callable[[Array, Array | None], Array]


class Segment(NamedTuple):
    """Keys and values, and who sees them.

    Attributes:
      keys: `[group, kv_head, slot, dim]`, shared by the rows of a group, or each row's own,
        `[group, kv_head, row, slot, dim]`.
      values: the same.
      mask: True where a query sees a slot.
      distance: tokens from the query back to the slot, where scores depend on it.
    """

    keys: Slots
    values: Slots
    mask: Bool[Array, "group row query slot"]
    distance: Int[Array, "group row query slot"] | None


class _Read(NamedTuple):
    """A segment as its queries see it.

    Attributes:
      scores: `[group, kv_head, row, head, query, slot]`.
      weigh: weighted sums of the values, by weights of that shape.
    """

    scores: Scores
    weigh: Callable[[Array], Array]


class _Normaliser(NamedTuple):
    """What makes weights of scores, in float32.

    Attributes:
      highest: score of each query.
      total: of the exponentials of its scores less the highest one.
    """

    highest: Float[Array, "group kv_head row head query 1"]
    total: Float[Array, "group kv_head row head query 1"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def mix(
    bend: Bend,
    q: Queries,
    segments: tuple[Segment, ...],
) -> Float[Array, "group row query kv_head*head*dim"]:
    """Softmax-weighted values of all segments.

    Args:
      bend: of the family.
      q: scaled queries; `head` counts those that share a key and value head.
      segments: at least one.
    """
    return _mix_forward(bend, q, segments)[0]


def mix_written(
    bend: Bend,
    q: Queries,
    segments: tuple[Segment, ...],
    written: Segment,
) -> Float[Array, "group row query kv_head*head*dim"]:
    """`mix` of these and of what decoding writes into, `[group·kv_head, (row,) slot, dim]`.

    That is read as it lies: any other shape or order, and XLA:CPU would write a copy of it with
    every token.
    """
    group, _, row, _, query, _ = q.shape
    if alone.is_alone(group, row, query):
        return _mix_alone(bend, q, [*segments, written])
    reads = [*(_read(q, segment) for segment in segments), _read_written(q, written)]
    return _heads_together(_softmax(bend, q, [*segments, written], reads)[0])


def _mix_forward(bend: Bend, q: Queries, segments: tuple[Segment, ...]) -> tuple[Array, tuple]:
    def softmax(segments: tuple[Segment, ...], q: Queries) -> tuple[Queries, _Normaliser]:
        return _softmax(bend, q, segments, [_read(q, segment) for segment in segments])

    out, normaliser = _by_head(softmax, segments, q)
    out = _heads_together(out)
    return out, (q, segments, out, normaliser)


def _mix_backward(bend: Bend, residual: tuple, d_out: Array) -> tuple[Array, tuple]:
    q, segments, out, normaliser = residual
    apart = functools.partial(_heads_apart, like=q)
    # What a query's weights would all gain: moving them together changes nothing.
    common = apart(d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True)

    def derivative(
        segments: tuple[Segment, ...],
        q: Queries,
        normaliser: _Normaliser,
        common: Float[Array, "group kv_head row head query 1"],
        d_out: Queries,
    ) -> tuple[Queries, tuple[Segment, ...]]:
        d_q, changes = 0.0, []
        for segment in segments:
            keys, values = segment.keys.astype(q.dtype), segment.values.astype(q.dtype)
            scores = _products(q, keys).astype(jnp.float32)
            bent, unbend = jax.vjp(lambda x, of=segment: bend(x, of.distance), scores)
            seen = segment.mask[:, None, :, None]
            weights = jnp.where(seen, jnp.exp(bent - normaliser.highest) / normaliser.total, 0.0)
            d_weights = _products(d_out, values).astype(jnp.float32)
            (d_scores,) = unbend(weights * (d_weights - common))
            d_scores = d_scores.astype(q.dtype)
            d_q += _weigh(d_scores, keys)
            changes.append(
                Segment(
                    _to_slots(q, d_scores, keys).astype(segment.keys.dtype),
                    _to_slots(d_out, weights.astype(q.dtype), values).astype(segment.values.dtype),
                    None,
                    None,
                )
            )
        return d_q, tuple(changes)

    return _by_head(derivative, segments, q, normaliser, common, apart(d_out))


mix.defvjp(_mix_forward, _mix_backward)


def _by_head(function: Callable[..., Any], segments: tuple[Segment, ...], *arrays: Any) -> Any:
    """`function(segments, *arrays)`; on one CPU, where scores are many, a head after another.

    What comes out is the same. A distance bends each head's scores in a way of its own: such heads
    stay together.

    Args:
      function: whose arrays, those that it gives too, have the key and value heads as axis 1.
      segments: of which it gets its heads' keys and values.
      arrays: the queries, and what else it takes.
    """
    q = arrays[0]
    slots = sum(segment.mask.shape[-1] for segment in segments)
    many = q.size // q.shape[-1] * slots > _MANY and q.shape[1] > 1
    bent = any(segment.distance is not None for segment in segments)
    if not many or bent or not jax.sharding.get_abstract_mesh().empty:
        return function(segments, *arrays)

    def heads(floats: list[tuple[Array, Array]], *arrays: Any) -> Any:
        pairs = zip(segments, floats, strict=True)
        return function(tuple(s._replace(keys=k, values=v) for s, (k, v) in pairs), *arrays)

    def in_turn(*given: Any) -> Any:
        apart = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0)[:, :, None], given)
        done = jax.lax.map(lambda x: heads(*x), apart)
        return jax.tree.map(lambda x: jnp.moveaxis(x[:, :, 0], 0, 1), done)

    floats = [(segment.keys, segment.values) for segment in segments]
    return jax.lax.platform_dependent(floats, *arrays, cpu=in_turn, default=heads)


def _softmax(
    bend: Bend, q: Queries, segments: Sequence[Segment], reads: Sequence[_Read]
) -> tuple[Queries, _Normaliser]:
    """Softmax-weighted values, normalised after the weighted sum; and what normalised them."""
    scores = [
        jnp.where(
            segment.mask[:, None, :, None],
            bend(read.scores.astype(jnp.float32), segment.distance),
            _MASKED,
        )
        for segment, read in zip(segments, reads, strict=True)
    ]
    highest = functools.reduce(jnp.maximum, [s.max(-1, keepdims=True) for s in scores])
    total, out = 0.0, 0.0
    for score, read in zip(scores, reads, strict=True):
        weights = jnp.exp(score - highest)
        total += weights.sum(-1, keepdims=True)
        out += read.weigh(weights.astype(q.dtype))
    return (out / total).astype(q.dtype), _Normaliser(highest, total)


def _mix_alone(
    bend: Bend, q: Queries, segments: Sequence[Segment]
) -> Float[Array, "group row query kv_head*head*dim"]:
    """What one token sees, in as few kernels as XLA:GPU makes of it.

    Scores and softmax are one where scores are sums, the queries are there already, and the weights
    are normalised before their product with the values. Of two products with the same queries XLA
    makes one, for which it copies all keys.
    """
    dtype, (_, kv_head, _, head, _, dim) = q.dtype, q.shape
    q = jax.lax.optimization_barrier(q).reshape(kv_head, head, 1, dim).astype(jnp.float32)
    scores = []
    for segment in segments:
        keys = segment.keys.reshape(kv_head, 1, -1, dim).astype(jnp.float32)
        score = bend((q * keys).sum(-1)[None, :, None, :, None], segment.distance)
        scores.append(jnp.where(segment.mask[:, None, :, None], score, _MASKED)[0, :, 0, :, 0])
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(dtype)
    ends = itertools.accumulate(score.shape[-1] for score in scores[:-1])
    parts = jax.lax.optimization_barrier(jnp.split(weights, list(ends), axis=-1))
    out = 0.0
    for part, segment in zip(parts, segments, strict=True):
        values = segment.values.reshape(kv_head, -1, dim).astype(dtype)
        out += jnp.einsum("khs,ksd->khd", part, values, preferred_element_type=jnp.float32)
    return out.astype(dtype).reshape(1, 1, 1, -1)


def _heads_together(x: Queries) -> Float[Array, "group row query kv_head*head*dim"]:
    """What came out of the softmax, as the output projection reads it."""
    group, _, row, _, query, _ = x.shape
    return jnp.transpose(x, (0, 2, 4, 1, 3, 5)).reshape(group, row, query, -1)


def _heads_apart(x: Float[Array, "group row query heads_dim"], like: Queries) -> Queries:
    """The same in the order of the queries."""
    group, kv_head, row, head, query, dim = like.shape
    x = x.reshape(group, row, query, kv_head, head, dim)
    return jnp.transpose(x, (0, 3, 1, 4, 2, 5))


# ── products of what has a `dim` for each query, `[g, k, r, h, t, d]`, with a segment ──


def _axes(x: Slots) -> str:
    return "gksd" if x.ndim == 4 else "gkrsd"


def _products(q: Queries, x: Slots) -> Scores:
    return jnp.einsum(f"gkrhtd,{_axes(x)}->gkrhts", q, x)


def _weigh(weights: Scores, x: Slots) -> Queries:
    return jnp.einsum(f"gkrhts,{_axes(x)}->gkrhtd", weights, x)


def _to_slots(q: Queries, weights: Scores, like: Slots) -> Slots:
    """What queries give to the slots, the derivative of both products above.

    The left factor is transposed in memory: let that be the one of a head's dimension, and not the
    weights, which are as wide as the segment. The barrier keeps XLA from turning it back.
    """
    owner = range(like.ndim - 2)
    who = range(like.ndim - 2, q.ndim - 1)
    # `einsum` would sum over them in alphabetical order, and move the weights for that.
    out = jax.lax.dot_general(q, weights, ((who, who), (owner, owner)))
    return jax.lax.optimization_barrier(out).swapaxes(-1, -2)


def _read(q: Queries, segment: Segment) -> _Read:
    values = segment.values.astype(q.dtype)
    scores = _products(q, segment.keys.astype(q.dtype))
    return _Read(scores, lambda weights: _weigh(weights, values))


def _read_written(q: Queries, segment: Segment) -> _Read:
    *lead, dim = q.shape
    *owner, slots, _ = segment.keys.shape
    flat = q.reshape(*owner, -1, dim)

    def weigh(weights: Array) -> Array:
        weights = weights.reshape(*flat.shape[:-1], slots)
        out = jnp.einsum("...xs,...sd->...xd", weights, segment.values.astype(q.dtype))
        return out.reshape(q.shape)

    scores = jnp.einsum("...sd,...xd->...sx", segment.keys.astype(q.dtype), flat)
    return _Read(scores.swapaxes(-1, -2).reshape(*lead, slots), weigh)
