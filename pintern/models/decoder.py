"""The one decoder of every family: `decoder(tokens, positions, cache) -> hidden, cache`.

It is run twice. Once over a group's shared prefix, and once over the rows that follow it:

    _, cache = decoder(prefix_tokens[:, None], prefix_positions[:, None], adapter=adapter)
    hidden, _ = decoder(row_tokens, row_positions, Cache.of_prefix(cache), adapter=adapter)

A position of −1 marks padding, wherever it stands; padded slots are seen by nobody.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from pintern.adapters.adapter import Adapter, LoraPair
from pintern.models.attention import KV, Attention, Masks, visible
from pintern.models.config import DecoderConfig
from pintern.models.layers import INIT_STD, MLP, LayerAdapter, Linear, Norm, rotary_angles


@flax.struct.dataclass
class Cache:
    """Keys and values of what was read so far.

    Attributes:
      prefix: `[layer, group, kv_head, prefix_slot, dim]`, shared by the rows of a group, or None.
      prefix_positions: `[group, prefix_slot]`, −1 where padded, or None.
      rows: `[layer, group, kv_head, row, slot, dim]`, or None before the first row token.
      row_positions: `[group, row, slot]`, −1 where padded or not yet written.
      length: slots of `rows` that are written.
    """

    prefix: KV | None = None
    prefix_positions: Int[Array, "group prefix_slot"] | None = None
    rows: KV | None = None
    row_positions: Int[Array, "group row slot"] | None = None
    length: Int[Array, ""] | int = 0

    def as_prefix(self) -> Cache:
        """Turns the cache of a one-row pass over a prefix into the prefix of what follows."""
        return Cache(
            prefix=jax.tree.map(lambda x: x[:, :, :, 0], self.rows),
            prefix_positions=self.row_positions[:, 0],
        )

    def with_room(self, slots: int) -> Cache:
        """Adds `slots` unwritten slots after the rows, for decoding."""

        def pad(x: Array) -> Array:
            return jnp.pad(x, [(0, 0)] * 4 + [(0, slots), (0, 0)])

        return self.replace(
            rows=jax.tree.map(pad, self.rows),
            row_positions=jnp.pad(
                self.row_positions, [(0, 0), (0, 0), (0, slots)], constant_values=-1
            ),
        )


class Block(nnx.Module):
    """Pre-norm residual block."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.attention_norm = Norm(config)
        self.attention = Attention(config, rngs=rngs)
        self.mlp_norm = Norm(config)
        self.mlp = MLP(config, rngs=rngs)


class Decoder(nnx.Module):
    """Embedding, scanned blocks, final norm and output matrix.

    Attributes:
      embedding: `[vocab, model]`.
      position_table: `[position, model]` for learned positions, else None.
      blocks: one `Block` whose parameters have a leading layer axis.
      head: `[model, vocab]`, or None when tied to the embedding.
    """

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs, remat: bool = False):
        self.config = config
        self.remat = remat

        def normal(*shape: int) -> nnx.Param:
            return nnx.Param(INIT_STD * jax.random.normal(rngs.params(), shape))

        self.embedding = normal(config.vocab_size, config.model_dim)
        self.position_table = (
            normal(config.max_positions, config.model_dim)
            if config.positions == "learned"
            else None
        )

        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap(in_axes=0, out_axes=0, axis_size=config.num_layers)
        def stack(rngs: nnx.Rngs) -> Block:
            return Block(config, rngs=rngs)

        self.blocks = stack(rngs)
        self.final_norm = Norm(config)
        self.head = None if config.tied_head else normal(config.model_dim, config.vocab_size)

    def embed(self, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch model"]:
        """Token embeddings, without positions."""
        return self.embedding[...][tokens]

    def __call__(
        self,
        inputs: Int[Array, "group row slot"] | Float[Array, "group row slot model"],
        positions: Int[Array, "group row slot"],
        cache: Cache | None = None,
        *,
        adapter: Adapter | None = None,
        dropout_key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "group row slot model"], Cache]:
        """Reads tokens (or embeddings, for soft prompts) and returns hidden states and the cache.

        Args:
          inputs: token ids, or embeddings as `embed` gives them.
          positions: place of each token in its whole sequence, prefix included; −1 is padding.
          cache: what was read before; None at the start.
          adapter: LoRA pairs to apply; its soft prompt is *not* added here (see `prefill`).
          dropout_key: switches LoRA dropout on.

        Returns:
          hidden states after the final norm, and the cache with these tokens added to its rows.
        """
        cache = cache or Cache()
        hidden = inputs if inputs.ndim == 4 else self.embed(inputs)
        safe = jnp.maximum(positions, 0)
        rotary = None
        if self.position_table is not None:
            hidden = hidden + self.position_table[...][safe]
        else:
            rotary = rotary_angles(safe, self.config.head_dim, self.config.rope_theta)

        query_slots = cache.length + jnp.arange(inputs.shape[2])
        row_positions = _write(cache.row_positions, positions, cache.length, axis=2)
        masks = Masks(
            prefix=None
            if cache.prefix is None
            else jnp.broadcast_to(
                (cache.prefix_positions >= 0)[:, None, None, :],
                (*positions.shape, cache.prefix_positions.shape[1]),
            ),
            own=visible(query_slots, row_positions),
        )

        graph, stacked = nnx.split(self.blocks)
        lora = {} if adapter is None else adapter.lora
        scale, rate = (1.0, 0.0) if adapter is None else (adapter.scale, adapter.dropout)
        keys = None
        if dropout_key is not None:
            keys = jax.random.split(dropout_key, self.config.num_layers)

        def layer(
            hidden: Array,
            xs: tuple[nnx.State, dict[str, LoraPair], KV | None, KV | None, Array | None],
        ) -> tuple[Array, KV]:
            state, pairs, prefix, rows, key = xs
            block = nnx.merge(graph, state)
            share = LayerAdapter(pairs, scale, rate, key)
            q, new = block.attention.project(block.attention_norm(hidden), rotary, share)
            own = (
                new
                if rows is None
                else jax.tree.map(lambda old, x: _write(old, x, cache.length, axis=3), rows, new)
            )
            mixed = block.attention.attend(q, prefix, own, masks)
            hidden = hidden + block.attention.output(mixed, share)
            hidden = hidden + block.mlp(block.mlp_norm(hidden), share)
            return hidden, own

        body = jax.checkpoint(layer) if self.remat else layer
        hidden, rows = jax.lax.scan(body, hidden, (stacked, lora, cache.prefix, cache.rows, keys))
        return self.final_norm(hidden), cache.replace(
            rows=rows, row_positions=row_positions, length=cache.length + inputs.shape[2]
        )

    def logits(self, hidden: Float[Array, "*batch model"]) -> Float[Array, "*batch vocab"]:
        """Output matrix, in float32. Call it on gathered targets, not on whole rows."""
        if self.head is None:
            out = hidden @ self.embedding[...].T.astype(hidden.dtype)
        else:
            out = hidden @ self.head[...].astype(hidden.dtype)
        return out.astype(jnp.float32)

    def linear_modules(self) -> dict[str, tuple[int, int]]:
        """Name to `(in, out)` of every linear module of one layer: what LoRA can target."""
        found = {}
        for _, module in nnx.iter_modules(self.blocks):
            if isinstance(module, Linear):
                _, width_in, width_out = module.kernel.shape
                found[module.name] = (width_in, width_out)
        return dict(sorted(found.items()))


def _write(old: Array | None, new: Array, start: Int[Array, ""] | int, *, axis: int) -> Array:
    if old is None:
        return new
    return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), start, axis)
