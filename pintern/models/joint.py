"""A prefix and the rows behind it in one pass: a layer's weights meet all of their tokens at once.

Only attention tells the two apart. Read one after another, the prefix and its rows each take all
layers' weights from memory, and each make products with fewer tokens.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Shaped

from pintern.adapters.adapter import Adapter, LoraPair
from pintern.models import fused
from pintern.models.attention import KV
from pintern.models.block import Block
from pintern.models.decoder import Decoder
from pintern.models.experts import Routed
from pintern.models.linear import LayerAdapter
from pintern.models.stack import at_places, through_stack
from pintern.models.views import views_of


def reads_jointly(decoder: Decoder) -> bool:
    """Whether `read_jointly` is for this decoder: stacked, and not on a mesh.

    A mesh splits a prefix by slots and rows by rows; joined, they would have to be moved.
    """
    return not isinstance(decoder.blocks, nnx.List) and jax.sharding.get_abstract_mesh().empty


def read_jointly(
    decoder: Decoder,
    prefix: Float[Array, "group prefix embed"],
    prefix_positions: Int[Array, "group prefix"],
    rows: Int[Array, "group row slot"],
    row_positions: Int[Array, "group row slot"],
    *,
    texts: Int[Array, "group row slot"] | None = None,
    wanted: Int[Array, "group lane wanted"] | None = None,
    adapter: Adapter | None = None,
) -> tuple[
    Float[Array, "group prefix model"] | None, Float[Array, "group lane read model"], Routed | None
]:
    """What the decoder gives for the prefix, and then for the rows behind it; without dropout.

    Args:
      decoder: see `reads_jointly`.
      prefix: soft prompt and embedded prefix, at least one slot.
      prefix_positions: −1 is padding, which stands behind what is real.
      rows: token ids.
      row_positions: in the whole sequence, prefix included; −1 is padding.
      texts: as `Decoder` takes them.
      wanted: places of the rows whose hidden states are asked for, as `Decoder` takes them; the
        last block then makes none of the prefix, and no others of the rows.
      adapter: LoRA pairs; its soft prompt is in `prefix`.

    Returns:
      hidden states after the final norm, of the prefix (None where some are wanted) and of the
      rows, and the routing of all tokens where there are experts.
    """
    ahead = prefix_positions[:, None]
    slots = prefix.shape[1]
    hidden = join(decoder.enter(prefix[:, None], ahead), decoder.enter(rows, row_positions))
    real = join(ahead, row_positions) >= 0
    views = [
        None if of_prefix is None else (of_prefix, of_rows)
        for of_prefix, of_rows in zip(
            views_of(decoder.config, ahead, ahead, None),
            views_of(decoder.config, row_positions, row_positions, prefix_positions, texts),
            strict=True,
        )
    ]
    # Angles of all tokens; who sees whom, for the prefix and for the rows.
    view, local_view = (
        both and (jax.tree.map(join, *(v.rotary for v in both)), *(v.masks for v in both))
        for both in views
    )
    causal = decoder.config.window is None
    scale = 1.0 if adapter is None else adapter.scale

    def layer(
        hidden: Array,
        block: Block,
        own: tuple[dict[str, LoraPair], Bool[Array, ""] | None],
        wanted: Array | None = None,
    ) -> tuple[Array, Routed | None]:
        lora, windowed = own
        share = LayerAdapter(lora, scale)
        seen = view
        if windowed is not None:
            seen = jax.tree.map(lambda a, b: jnp.where(windowed, a, b), local_view, view)
        rotary, of_prefix, of_rows = seen

        def attend(x: Array) -> tuple[Array, None]:
            q, new = block.attention.project(x, rotary, share)
            queries = apart(q, slots, rows.shape[1])
            ahead, behind = _keys_apart(new, slots, rows.shape[1])
            shared = jax.tree.map(lambda x: x[:, :, 0], ahead)
            mixed = fused.attend(block.attention, queries[1], shared, behind, of_rows)
            if wanted is None:
                first = fused.attend(
                    block.attention, queries[0], None, ahead, of_prefix, causal=causal
                )
                mixed = join(first, mixed)
            return block.attention.output(at_places(mixed, wanted), share), None

        def pick(x: Array) -> Array:
            return x if wanted is None else at_places(apart(x, slots, rows.shape[1])[1], wanted)

        hidden, _, routed = block(hidden, attend, share, real, pick)
        return hidden, routed

    windowed = jnp.asarray(decoder.config.windowed) if decoder.config.windowed else None
    hidden, routed = through_stack(
        layer,
        hidden,
        decoder.blocks,
        ({} if adapter is None else adapter.lora, windowed),
        last=None if wanted is None else functools.partial(layer, wanted=wanted),
        remat=decoder.remat,
        unroll=decoder.unroll,
    )
    if decoder.final_norm is not None:
        hidden = decoder.final_norm(hidden)
    if wanted is not None:
        return None, hidden, routed
    of_prefix, of_rows = apart(hidden, slots, rows.shape[1])
    return of_prefix[:, 0], of_rows, routed


def join(
    prefix: Shaped[Array, "group 1 prefix *rest"], rows: Shaped[Array, "group row slot *rest"]
) -> Shaped[Array, "group 1 joined *rest"]:
    """The prefix's slots and, behind them, all rows' slots."""
    group, _, _, *rest = rows.shape
    return jnp.concatenate([prefix, rows.reshape(group, 1, -1, *rest)], axis=2)


def apart(
    joined: Shaped[Array, "group 1 joined *rest"], prefix: int, rows: int
) -> tuple[Shaped[Array, "group 1 prefix *rest"], Shaped[Array, "group row slot *rest"]]:
    """What `join` joined, of a prefix of so many slots and of so many rows."""
    group, _, _, *rest = joined.shape
    return joined[:, :, :prefix], joined[:, 0, prefix:].reshape(group, rows, -1, *rest)


def _keys_apart(new: KV, slots: int, rows: int) -> tuple[KV, KV]:
    """Keys and values of the prefix, and those of the rows."""
    parts = [_heads_apart(x, slots, rows) for x in (new.keys, new.values)]
    of_prefix, of_rows = (KV(*part) for part in zip(*parts, strict=True))
    return of_prefix, of_rows


def _heads_apart(
    x: Float[Array, "group kv_head 1 joined dim"], slots: int, rows: int
) -> tuple[Float[Array, "group kv_head 1 prefix dim"], Float[Array, "group kv_head row slot dim"]]:
    group, heads, _, _, dim = x.shape
    return x[..., :slots, :], x[:, :, 0, slots:].reshape(group, heads, rows, -1, dim)
