"""Attention of rows to a prefix that their group shares, and to themselves."""

import functools
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from pintern.models.config import DecoderConfig
from pintern.models.layers import INIT_STD, LayerAdapter, Linear, apply_rotary

# Finite, so that a row which is all padding yields numbers and not NaN.
_MASKED = -1e30


@flax.struct.dataclass
class KV:
    """Keys and values; the leading axes say whose: `[layer, group, kv_head, (row,)]`.

    Attributes:
      keys: `[..., slot, dim]`.
      values: `[..., slot, dim]`.
    """

    keys: Float[Array, "*owner slot dim"]
    values: Float[Array, "*owner slot dim"]


class Masks(NamedTuple):
    """Who may look at what: True where a query sees a slot.

    Attributes:
      prefix: `[group, row, query, prefix_slot]`, or None without a prefix.
      own: `[group, row, query, own_slot]`.
    """

    prefix: Bool[Array, "group row query prefix_slot"] | None
    own: Bool[Array, "group row query own_slot"]


class Attention(nnx.Module):
    """Multi-head or grouped-query attention over two segments: shared prefix and own row."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        width, bias = config.model_dim, config.attention_bias
        self.heads, self.kv_heads, self.dim = (
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
        )
        q_width, kv_width = self.heads * self.dim, self.kv_heads * self.dim
        if config.fused_qkv:
            self.qkv = Linear("attention.qkv", width, q_width + 2 * kv_width, bias=bias, rngs=rngs)
        else:
            self.query = Linear("attention.query", width, q_width, bias=bias, rngs=rngs)
            self.key = Linear("attention.key", width, kv_width, bias=bias, rngs=rngs)
            self.value = Linear("attention.value", width, kv_width, bias=bias, rngs=rngs)
        self.fused = config.fused_qkv
        out_std = INIT_STD / (2 * config.num_layers) ** 0.5
        self.output = Linear(
            "attention.output", q_width, width, bias=config.output_bias, rngs=rngs, std=out_std
        )

    def project(
        self,
        x: Float[Array, "group row query model"],
        rotary: tuple[Float[Array, "group row query half"], ...] | None,
        adapter: LayerAdapter,
    ) -> tuple[Float[Array, "group row query heads dim"], KV]:
        """Queries, and the keys and values that this row adds, with rotary positions applied."""
        if self.fused:
            q_width, kv_width = self.heads * self.dim, self.kv_heads * self.dim
            q, k, v = jnp.split(self.qkv(x, adapter), [q_width, q_width + kv_width], axis=-1)
        else:
            q, k, v = self.query(x, adapter), self.key(x, adapter), self.value(x, adapter)
        q = q.reshape(*x.shape[:-1], self.heads, self.dim)
        k = k.reshape(*x.shape[:-1], self.kv_heads, self.dim)
        v = v.reshape(*x.shape[:-1], self.kv_heads, self.dim)
        if rotary is not None:
            q, k = apply_rotary(q, *rotary), apply_rotary(k, *rotary)
        return q, KV(*(jnp.transpose(part, (0, 3, 1, 2, 4)) for part in (k, v)))

    # Recomputed in the backward pass: stacked over layers, the scores would be by far the largest
    # thing that is kept, and on a CPU writing them out costs more than making them again.
    @functools.partial(jax.checkpoint, static_argnums=0)
    def attend(
        self,
        q: Float[Array, "group row query heads dim"],
        prefix: KV | None,
        own: KV,
        masks: Masks,
    ) -> Float[Array, "group row query heads*dim"]:
        """One softmax over both segments; the prefix is never repeated per row.

        The scores of both segments come out of the matrix product in the order in which they are
        used, and are normalised after the weighted sum: no large array is copied or joined.

        Args:
          q: queries.
          prefix: `[group, kv_head, prefix_slot, dim]`, shared by all rows of a group, or None.
          own: `[group, kv_head, row, own_slot, dim]`.
          masks: see `Masks`.
        """
        group, row, query, heads, dim = q.shape
        q = q.reshape(group, row, query, self.kv_heads, heads // self.kv_heads, dim) * dim**-0.5
        q = jnp.transpose(q, (0, 3, 1, 4, 2, 5))  # g k r h t d
        segments = [(own, "gkrsd", masks.own)]
        if prefix is not None:
            segments.append((prefix, "gksd", masks.prefix))
        scores = [
            jnp.where(
                mask[:, None, :, None],
                jnp.einsum(f"gkrhtd,{axes}->gkrhts", q, kv.keys.astype(q.dtype)).astype(
                    jnp.float32
                ),
                _MASKED,
            )
            for kv, axes, mask in segments
        ]
        highest = functools.reduce(jnp.maximum, [s.max(-1, keepdims=True) for s in scores])
        highest = jax.lax.stop_gradient(highest)
        total, out = 0.0, 0.0
        for score, (kv, axes, _) in zip(scores, segments, strict=True):
            weights = jnp.exp(score - highest)
            total += weights.sum(-1, keepdims=True)
            out += jnp.einsum(
                f"gkrhts,{axes}->gkrhtd", weights.astype(q.dtype), kv.values.astype(q.dtype)
            )
        out = (out / total).astype(q.dtype)
        return jnp.transpose(out, (0, 2, 4, 1, 3, 5)).reshape(group, row, query, heads * dim)


def visible(
    query_slots: Int[Array, " query"], key_positions: Int[Array, "group row slot"]
) -> Bool[Array, "group row query slot"]:
    """A slot is seen when it is filled (position ≥ 0) and not later than the query's own slot."""
    slots = jnp.arange(key_positions.shape[-1])
    causal = slots[None, :] <= query_slots[:, None]
    return causal & (key_positions >= 0)[:, :, None, :]
