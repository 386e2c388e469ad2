"""Attention of rows to a prefix that their group shares, and to themselves."""

from typing import NamedTuple

import flax.struct
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from pintern.models.config import DecoderConfig
from pintern.models.linear import INIT_STD, Joined, LayerAdapter, Linear, each_of
from pintern.models.norms import Norm, norm_of
from pintern.models.rope import apply_rotary
from pintern.models.segments import Segment, mix, mix_written
from pintern.models.sharding import whole_heads


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
    """Who may look at what: True where a query sees a slot; and how far it looks back.

    Attributes:
      prefix: `[group, row, query, prefix_slot]`, or None without a prefix.
      own: `[group, row, query, own_slot]`.
      prefix_distance: tokens from the query back to the slot, where scores depend on it (ALiBi).
      own_distance: the same within the row.
    """

    prefix: Bool[Array, "group row query prefix_slot"] | None
    own: Bool[Array, "group row query own_slot"]
    prefix_distance: Int[Array, "group row query prefix_slot"] | None = None
    own_distance: Int[Array, "group row query own_slot"] | None = None


class Attention(nnx.Module):
    """Multi-head or grouped-query attention over two segments: shared prefix and own row.

    Attributes:
      implementation: of reading several tokens: `xla`, as `attend` has it, or a fused kernel's name
        (`models.fused`).
      joined: query, key and value, where they are one map (`join`).
    """

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
        self.joined: Joined | None = None
        self.fused, self.by_head = config.fused_qkv, config.qkv_by_head
        self.query_norm = norm_of(config, self.dim) if config.qk_norm else None
        self.key_norm = norm_of(config, self.dim) if config.qk_norm else None
        self.scale = self.dim**-0.5 if config.query_scale is None else config.query_scale
        self.cap = config.score_cap
        self.alibi = config.positions == "alibi"
        self.implementation = "xla"
        out_std = INIT_STD / (2 * config.num_layers) ** 0.5
        self.output = Linear(
            "attention.output", q_width, width, bias=config.output_bias, rngs=rngs, std=out_std
        )

    def project(
        self,
        x: Float[Array, "group row query model"],
        rotary: tuple[Float[Array, "group row query half"], ...] | None,
        adapter: LayerAdapter,
        norm: Norm | None = None,
    ) -> tuple[Float[Array, "group row query heads dim"], KV]:
        """Queries, and the keys and values that this row adds, with rotary positions applied.

        Of norm(x), where a norm is given: to a joined map, for a token alone.
        """
        if self.joined is not None:
            q, k, v = self.joined(x, adapter, norm)
        elif not self.fused:
            q, k, v = each_of((self.query, self.key, self.value), x, adapter)
        elif self.by_head:
            heads = self.qkv(x, adapter).reshape(*x.shape[:-1], self.heads, 3, self.dim)
            q, k, v = heads[..., 0, :], heads[..., 1, :], heads[..., 2, :]
        else:
            q_width, kv_width = self.heads * self.dim, self.kv_heads * self.dim
            q, k, v = jnp.split(self.qkv(x, adapter), [q_width, q_width + kv_width], axis=-1)
        q = whole_heads(q.reshape(*x.shape[:-1], self.heads, self.dim))
        k = whole_heads(k.reshape(*x.shape[:-1], self.kv_heads, self.dim))
        v = whole_heads(v.reshape(*x.shape[:-1], self.kv_heads, self.dim))
        if self.query_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if rotary is not None:
            q, k = apply_rotary(q, *rotary), apply_rotary(k, *rotary)
        return q, KV(*(jnp.transpose(part, (0, 3, 1, 2, 4)) for part in (k, v)))

    def join(self) -> None:
        """Makes one map of the three that read the same."""
        if not self.fused:
            self.joined = nnx.data(Joined((self.query, self.key, self.value)))
            self.query = self.key = self.value = nnx.static(None)

    def attend(
        self,
        q: Float[Array, "group row query heads dim"],
        prefix: KV | None,
        own: KV,
        masks: Masks,
    ) -> Float[Array, "group row query heads*dim"]:
        """One softmax over both segments; the prefix is never repeated per row.

        Args:
          q: queries.
          prefix: `[group, kv_head, prefix_slot, dim]`, shared by all rows of a group, or None.
          own: `[group, kv_head, row, own_slot, dim]`, or as `Cache.rows` holds it.
          masks: see `Masks`.
        """
        group, row, query, heads, dim = q.shape
        q = q.reshape(group, row, query, self.kv_heads, heads // self.kv_heads, dim) * self.scale
        q = jnp.transpose(q, (0, 3, 1, 4, 2, 5))  # g k r h t d
        shared = ()
        if prefix is not None:
            shared = (Segment(prefix.keys, prefix.values, masks.prefix, masks.prefix_distance),)
        mine = Segment(own.keys, own.values, masks.own, masks.own_distance)
        if own.keys.ndim == 5:
            return mix(self._bend, q, (*shared, mine))
        return mix_written(self._bend, q, shared, mine)

    def _bend(
        self,
        score: Float[Array, "group kv_heads row shared query slot"],
        distance: Int[Array, "group row query slot"] | None,
    ) -> Float[Array, "group kv_heads row shared query slot"]:
        """Scores with the soft cap and the penalty on distance that the family has."""
        if self.cap is not None:
            score = self.cap * jnp.tanh(score / self.cap)
        if self.alibi:
            slopes = alibi_slopes(self.heads).reshape(self.kv_heads, 1, -1, 1, 1)
            score = score - slopes * distance[:, None, :, None].astype(jnp.float32)
        return score


def visible(
    query_positions: Int[Array, "group row query"], key_positions: Int[Array, "group #row slot"]
) -> Bool[Array, "group row query slot"]:
    """A slot is seen when it is filled (position ≥ 0) and stands no later than the query.

    By position and not by slot: what a row's slots hold needn't be in order (`evaluation.places`).
    """
    keys = key_positions[:, :, None, :]
    return (keys >= 0) & (keys <= query_positions[..., None])


def distances(
    query_positions: Int[Array, "group row query"], key_positions: Int[Array, "group #row slot"]
) -> Int[Array, "group row query slot"]:
    """Tokens from each query back to each slot, by position and not by slot."""
    return query_positions[..., None] - key_positions[:, :, None, :]


def alibi_slopes(heads: int) -> Float[Array, " heads"]:
    """Penalty per token of distance, head by head: 2^(-8i/n) for n heads (ALiBi, 2108.12409).

    Where n is no power of two, the heads above the power below it take every other slope of twice
    that power.
    """
    power = 1 << (heads.bit_length() - 1)
    exponents = [8 * i / power for i in range(1, power + 1)]
    exponents += [4 * i / power for i in range(1, 2 * (heads - power), 2)]
    return 2.0 ** -jnp.asarray(exponents, jnp.float32)
