"""The one decoder of every family: `decoder(tokens, positions, cache) -> hidden, cache`.

It is run twice. Once over a group's shared prefix, and once over the rows that follow it:

    _, cache = decoder(prefix_tokens[:, None], prefix_positions[:, None], adapter=adapter)
    hidden, _ = decoder(row_tokens, row_positions, cache.as_prefix(), adapter=adapter)

A position of −1 marks padding, wherever it stands; padded slots are seen by nobody.
"""

from __future__ import annotations

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from pintern.adapters.adapter import Adapter, LoraPair
from pintern.models import fused
from pintern.models.attention import KV
from pintern.models.block import Block
from pintern.models.cache import Cache, write_rows, write_slots
from pintern.models.config import DecoderConfig
from pintern.models.experts import Routed
from pintern.models.linear import INIT_STD, LayerAdapter, Linear, by_outputs
from pintern.models.norms import Norm, norm_of
from pintern.models.sharding import gathered, split_hidden, split_vocab, whole_slots
from pintern.models.stack import at_places, one_by_one, through_stack
from pintern.models.views import views_of


class Own(NamedTuple):
    """What a layer has of its own, besides its weights.

    Attributes:
      lora: its share of the adapter.
      prefix: keys and values of the prefix.
      rows: those of the rows so far.
      key: of its dropout.
      windowed: whether it sees a window only, where some layers do and others don't.
    """

    lora: dict[str, LoraPair]
    prefix: KV | None
    rows: KV | None
    key: PRNGKeyArray | None
    windowed: Bool[Array, ""] | None


class Decoder(nnx.Module):
    """Embedding, scanned blocks, final norm and output matrix.

    Attributes:
      embedding: `[vocab, model]`, or `[vocab, embed]` with `project_in` and `project_out`.
      position_table: `[position, model]` for learned positions, else None.
      project_in: `[embed, model]`, or None.
      project_out: `[model, embed]`, or None.
      blocks: one `Block` whose parameters have a leading layer axis, or a list of one for each
        layer (`evaluation.unroll`), as the cache's entries then are.
      final_norm: None where the last block ends with a norm.
      head: `[model, vocab]`, or None when tied to the embedding.
      out_first: whether head and kernels lie as `[out, in]` instead (`evaluation.unroll`).
      unroll: stacked blocks that the program has one behind another; as many as there are is a
        program without a loop, which keeps nothing in stacks and takes longer to compile.
    """

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs, remat: bool = False):
        self.config = config
        self.remat = remat

        def normal(*shape: int) -> nnx.Param:
            return nnx.Param(INIT_STD * jax.random.normal(rngs.params(), shape))

        width, embed = config.model_dim, config.embed_dim or config.model_dim
        self.embedding = normal(config.vocab_size, embed)
        self.position_table = (
            normal(config.max_positions + config.position_offset, width)
            if config.positions == "learned"
            else None
        )
        self.project_in = normal(embed, width) if config.embed_dim else None
        self.project_out = normal(width, embed) if config.embed_dim else None
        self.embedding_norm = norm_of(config) if config.embedding_norm else None

        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap(in_axes=0, out_axes=0, axis_size=config.num_layers)
        def stack(rngs: nnx.Rngs) -> Block:
            return Block(config, rngs=rngs)

        self.blocks = stack(rngs)
        self.final_norm = None if config.norm_placement == "post" else norm_of(config)
        self.head = None if config.tied_head else normal(embed, config.vocab_size)
        self.out_first = False
        self.unroll = 1

    def embed(self, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch embed"]:
        """Token embeddings, scaled as the family does, without positions. Soft prompts are such."""
        embedded = gathered(self.embedding[...], "embedding")[tokens]
        if self.config.embedding_scale == 1.0:
            return embedded
        return embedded * jnp.asarray(self.config.embedding_scale, embedded.dtype)

    def enter(
        self,
        inputs: Int[Array, "group row slot"] | Float[Array, "group row slot embed"],
        positions: Int[Array, "group row slot"],
    ) -> Float[Array, "group row slot model"]:
        """What the first block reads; arguments as in `__call__`."""
        hidden = inputs if inputs.ndim == 4 else self.embed(inputs)
        if self.project_in is not None:
            hidden = hidden @ self.project_in[...].astype(hidden.dtype)
        if self.position_table is not None:
            safe = jnp.maximum(positions, 0)
            hidden = hidden + self.position_table[...][safe + self.config.position_offset]
        return hidden if self.embedding_norm is None else self.embedding_norm(hidden)

    def __call__(
        self,
        inputs: Int[Array, "group row slot"] | Float[Array, "group row slot embed"],
        positions: Int[Array, "group row slot"],
        cache: Cache | None = None,
        *,
        texts: Int[Array, "group row slot"] | None = None,
        wanted: Int[Array, "group lane wanted"] | None = None,
        ordered: bool = False,
        adapter: Adapter | None = None,
        dropout_key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "group lane read model"], Cache]:
        """Reads tokens (or embeddings, for soft prompts) and returns hidden states and the cache.

        Args:
          inputs: token ids, or embeddings as `embed` gives them.
          positions: place of each token in its whole sequence, prefix included; −1 is padding.
          cache: what was read before; None at the start.
          texts: number of the text that each token is of, where a row holds several that don't see
            one another. All of such a row is read at once.
          wanted: places whose hidden states are asked for, among the slots of each lane's rows, one
            row behind another; a lane is as many rows as there are to a list. The last block makes
            no others, and its router counts no others. All of them where it is None. Not together
            with dropout.
          ordered: whether each row has its tokens in order and padding behind them. What stands at
            padded slots means nothing then.
          adapter: LoRA pairs to apply; its soft prompt is *not* added here (see `prefill`).
          dropout_key: switches LoRA dropout on.

        Returns:
          hidden states after the final norm, of each slot or at the wanted places, and the cache
          with these tokens added to its rows.

        Raises:
          ValueError: both `wanted` and `dropout_key` are given, or `texts` and earlier rows.
        """
        if wanted is not None and dropout_key is not None:
            raise ValueError("Slots can't be wanted under dropout, whose draws go by slot.")
        cache = cache or Cache()
        if texts is not None and cache.rows is not None:
            raise ValueError("Rows of several texts are read at once, not behind what was read.")
        hidden = split_hidden(self.enter(inputs, positions))
        row_positions = write_slots(cache.row_positions, positions, cache.length, axis=2)
        view, local_view = views_of(
            self.config, positions, row_positions, cache.prefix_positions, texts
        )
        real = positions >= 0
        causal = ordered and cache.rows is None and texts is None and self.config.window is None

        lora = {} if adapter is None else adapter.lora
        scale, rate = (1.0, 0.0) if adapter is None else (adapter.scale, adapter.dropout)
        keys = None
        if dropout_key is not None:
            keys = jax.random.split(dropout_key, self.config.num_layers)

        # Where every row has a list of its own, its other queries aren't looked at; where a list is
        # of several rows, all queries are, and what they found is left.
        lists = wanted is not None and wanted.shape[1] == inputs.shape[1]

        def layer(
            hidden: Array, block: Block, own: Own, wanted: Array | None = None
        ) -> tuple[Array, tuple[KV, Routed | None]]:
            share = LayerAdapter(own.lora, scale, rate, own.key)
            rotary, masks = view
            if own.windowed is not None:
                rotary, masks = jax.tree.map(
                    lambda local, full: jnp.where(own.windowed, local, full), local_view, view
                )
            queries, found = (wanted, None) if lists else (None, wanted)

            def attend(
                x: Array, *, norm: Norm | None = None, residual: Array | None = None
            ) -> tuple[Array, KV]:
                q, new = block.attention.project(x, rotary, share, norm)
                new = KV(whole_slots(new.keys), whole_slots(new.values))
                rows = new if own.rows is None else write_rows(own.rows, new, cache.length)
                mixed = fused.attend(
                    block.attention,
                    at_places(q, queries),
                    own.prefix,
                    rows,
                    jax.tree.map(lambda mask: at_places(mask, queries), masks),
                    causal=causal and queries is None,
                )
                mixed = at_places(mixed, found)
                if residual is not None:
                    return block.attention.output.added(mixed, share, residual), rows
                return block.attention.output(mixed, share), rows

            hidden, rows, routed = block(
                hidden, attend, share, real, lambda x: at_places(x, wanted)
            )
            return split_hidden(hidden), (rows, routed)

        last = None if wanted is None else functools.partial(layer, wanted=wanted)
        windowed = jnp.asarray(self.config.windowed) if self.config.windowed else None
        if isinstance(self.blocks, nnx.List):
            own = []
            for i in range(len(self.blocks)):
                share, key, local = jax.tree.map(operator.itemgetter(i), (lora, keys, windowed))
                prefix, rows = (part and part[i] for part in (cache.prefix, cache.rows))
                own.append(Own(share, prefix, rows, key, local))
            hidden, kept = one_by_one(layer, hidden, self.blocks, own, last=last)
            rows, routed = zip(*kept, strict=True)
            routed = None if routed[0] is None else jax.tree.map(lambda *x: jnp.stack(x), *routed)
        else:
            hidden, (rows, routed) = through_stack(
                layer,
                hidden,
                self.blocks,
                Own(lora, cache.prefix, cache.rows, keys, windowed),
                last=last,
                remat=self.remat,
                unroll=self.unroll,
            )
        if self.final_norm is not None:
            hidden = self.final_norm(hidden)
        if routed is not None and cache.routed is not None:
            routed = cache.routed + routed
        return hidden, cache.replace(
            rows=rows,
            row_positions=row_positions,
            length=cache.length + inputs.shape[2],
            routed=routed,
        )

    def logits(self, hidden: Float[Array, "*batch model"]) -> Float[Array, "*batch vocab"]:
        """Output matrix, in float32. Call it on gathered targets, not on whole rows."""
        if self.project_out is not None:
            hidden = hidden @ self.project_out[...].astype(hidden.dtype)
        if self.head is None:
            by_output = gathered(self.embedding[...], "embedding").astype(hidden.dtype)
            out = by_outputs(hidden, by_output) if self.out_first else hidden @ by_output.T
        else:
            head = gathered(self.head[...], "head").astype(hidden.dtype)
            out = by_outputs(hidden, head) if self.out_first else hidden @ head
        out = split_vocab(out.astype(jnp.float32))
        cap = self.config.logit_cap
        return out if cap is None else cap * jnp.tanh(out / cap)

    def linear_modules(self) -> dict[str, tuple[int, int]]:
        """Name to `(in, out)` of every linear module of one layer: what LoRA can target."""
        found = {}
        for _, module in nnx.iter_modules(self.blocks):
            if isinstance(module, Linear):
                _, width_in, width_out = module.kernel.shape
                found[module.name] = (width_in, width_out)
        return dict(sorted(found.items()))
