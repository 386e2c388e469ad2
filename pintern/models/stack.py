"""The blocks of a stack in turn, and the last one at those places alone that are asked for.

What the last block makes of a token goes nowhere but to the loss: of a prompt's token, which has
none, its keys and values are all that is needed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Shaped

from pintern.models.block import Block
from pintern.models.linear import Linear

# Of hidden states, a block and what else the layer has: hidden states, and what is kept of them.
Layer = Callable[[Array, Block, Any], tuple[Array, Any]]


def through_stack(
    layer: Layer,
    hidden: Float[Array, "group row slot model"],
    blocks: Block,
    own: Any,
    *,
    last: Layer | None = None,
    remat: bool = False,
    unroll: int = 1,
) -> tuple[Float[Array, "group lane read model"], Any]:
    """Hidden states behind all blocks, and what each layer kept, with a leading layer axis.

    Args:
      layer: what is done with a block.
      hidden: what the first one reads.
      blocks: of all layers, with a leading layer axis.
      own: what else each layer has of its own, likewise.
      last: what is done with the last block, where it isn't the same.
      remat: whether blocks are computed again in the backward pass.
      unroll: as `Decoder.unroll`.
    """
    graph, weights = nnx.split(blocks)
    count = len(jax.tree.leaves(weights)[0])
    again = jax.checkpoint if remat else lambda function: function
    if unroll >= count:
        each = [nnx.merge(graph, jax.tree.map(itemgetter(i), weights)) for i in range(count)]
        hidden, kept = one_by_one(layer, hidden, each, _apart(own, count), last=last, remat=remat)
        return hidden, jax.tree.map(lambda *x: jnp.stack(x), *kept)
    if last is None:

        @again
        def body(hidden: Array, xs: tuple[Any, Any]) -> tuple[Array, Any]:
            return layer(hidden, nnx.merge(graph, xs[0]), xs[1])

        return jax.lax.scan(body, hidden, (weights, own), unroll=unroll)

    @again
    def numbered(hidden: Array, xs: tuple[Array, Any]) -> tuple[Array, Any]:
        return layer(hidden, _numbered(graph, weights, xs[0]), xs[1])

    before, behind = (jax.tree.map(itemgetter(part), own) for part in (slice(-1), slice(-1, None)))
    hidden, kept = jax.lax.scan(numbered, hidden, (jnp.arange(count - 1), before), unroll=unroll)
    block = nnx.merge(graph, jax.tree.map(itemgetter(-1), weights))
    hidden, of_last = one_by_one(last, hidden, [block], _apart(behind, 1), remat=remat)
    return hidden, jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), kept, *of_last)


def one_by_one(
    layer: Layer,
    hidden: Float[Array, "group row slot model"],
    blocks: Iterable[Block],
    own: Iterable[Any],
    *,
    last: Layer | None = None,
    remat: bool = False,
) -> tuple[Float[Array, "group lane read model"], list[Any]]:
    """The same of blocks that are no stack: what each kept, in a list."""
    kept, pairs = [], list(zip(blocks, own, strict=True))
    for i, (block, share) in enumerate(pairs, 1):
        step = functools.partial((last or layer) if i == len(pairs) else layer, block=block)
        if remat:
            step = jax.checkpoint(step)
        hidden, of_this = step(hidden, own=share)
        kept.append(of_this)
    return hidden, kept


def _apart(own: Any, count: int) -> list[Any]:
    """Each layer's share. Their derivatives are joined once, where those of slices would each be
    as large as all of them.
    """
    leaves, structure = jax.tree.flatten(own)
    parts = [jax.lax.split(x, (1,) * count) for x in leaves]
    return [structure.unflatten([part[i][0] for part in parts]) for i in range(count)]


def at_places(
    x: Shaped[Array, "group row slot *rest"], places: Int[Array, "group lane read"] | None
) -> Shaped[Array, "group lane read *rest"]:
    """What stands at some places among the slots of each lane's rows, one row behind another; all
    of it as it is where none are named.
    """
    if places is None:
        return x
    group, lane, _ = places.shape
    flat = x.reshape(group, lane, -1, *x.shape[3:])
    return jnp.take_along_axis(flat, places.reshape(*places.shape, *(1,) * (x.ndim - 3)), axis=2)


def _numbered(graph: nnx.GraphDef, weights: Any, number: Int[Array, ""]) -> Block:
    """The block of a number, in which linear maps have the kernels of all layers.

    A stack of all blocks but one would be a copy of nearly all weights; and kernels that are taken
    out here would be kept of every layer, for the backward pass.
    """

    def taken(path: tuple, x: Array) -> Array:
        stacked = any(getattr(key, "key", None) == "kernel" for key in path)
        return x if stacked else jax.lax.dynamic_index_in_dim(x, number, keepdims=False)

    block = nnx.merge(graph, jax.tree_util.tree_map_with_path(taken, weights))
    for _, module in nnx.iter_modules(block):
        if isinstance(module, Linear):
            module.number = number
    return block
