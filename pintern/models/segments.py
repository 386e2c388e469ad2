"""One softmax over the scores of several segments of keys, and its derivative.

Nothing as large as the scores is kept for the backward pass, copied or joined: they are made again
there. With what the softmax was normalised by and what came out of it at hand, that takes one pass
over them, without the maximum, the sum and the weighted sum (FlashAttention, 2205.14135, appendix
B.2).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Finite, so that a row which is all padding yields numbers and not NaN.
_MASKED = -1e30

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
    reads = [*(_read(q, segment) for segment in segments), _read_written(q, written)]
    return _softmax(bend, q, [*segments, written], reads)[0]


def _mix_forward(bend: Bend, q: Queries, segments: tuple[Segment, ...]) -> tuple[Array, tuple]:
    out, normaliser = _softmax(bend, q, segments, [_read(q, segment) for segment in segments])
    return out, (q, segments, out, normaliser)


def _mix_backward(bend: Bend, residual: tuple, d_out: Array) -> tuple[Array, tuple]:
    q, segments, out, (highest, total) = residual
    apart = functools.partial(_heads_apart, like=q)
    # What a query's weights would all gain: moving them together changes nothing.
    common = apart(d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True)
    d_out = apart(d_out)
    d_q, changes = 0.0, []
    for segment in segments:
        keys, values = segment.keys.astype(q.dtype), segment.values.astype(q.dtype)
        scores = _products(q, keys).astype(jnp.float32)
        bent, unbend = jax.vjp(lambda x, of=segment: bend(x, of.distance), scores)
        seen = segment.mask[:, None, :, None]
        weights = jnp.where(seen, jnp.exp(bent - highest) / total, 0.0)
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


mix.defvjp(_mix_forward, _mix_backward)


def _softmax(
    bend: Bend, q: Queries, segments: Sequence[Segment], reads: Sequence[_Read]
) -> tuple[Float[Array, "group row query kv_head*head*dim"], _Normaliser]:
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
    group, _, row, _, query, _ = q.shape
    out = jnp.transpose((out / total).astype(q.dtype), (0, 2, 4, 1, 3, 5))
    return out.reshape(group, row, query, -1), _Normaliser(highest, total)


def _heads_apart(x: Float[Array, "group row query heads_dim"], like: Queries) -> Queries:
    """What came out of the softmax, in the order of the queries."""
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
    out = jnp.einsum(f"gkrhtd,gkrhts->{_axes(like)[:-2]}ds", q, weights)
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
