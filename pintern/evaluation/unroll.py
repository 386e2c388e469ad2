"""The decoder with a block for every layer, in place of one block whose parameters are stacked.

Stacked, a layer's weights are a slice; where a program reads each weight once for a few tokens, as
decoding does, XLA:CPU spends more time on copying slices than on the products themselves.
"""

import functools
import operator

import jax
from flax import nnx

from pintern.models.decoder import Decoder


def unrolled(graph: nnx.GraphDef, base: nnx.State) -> tuple[nnx.GraphDef, nnx.State]:
    """The same decoder, split again, with `blocks` as a list of layers.

    The layers' weights are copies: they stand in memory beside the stacked ones. A decoder that is
    unrolled already is given back.
    """
    decoder: Decoder = nnx.merge(graph, base)
    if isinstance(decoder.blocks, nnx.List):
        return graph, base
    block, stacked = nnx.split(decoder.blocks)
    layers = _layers(stacked, decoder.config.num_layers)
    decoder.blocks = nnx.List([nnx.merge(block, layer) for layer in layers])
    return nnx.split(decoder)


@functools.partial(jax.jit, static_argnums=1)
def _layers(stacked: nnx.State, count: int) -> list[nnx.State]:
    """All slices by one program."""
    return [jax.tree.map(operator.itemgetter(i), stacked) for i in range(count)]
