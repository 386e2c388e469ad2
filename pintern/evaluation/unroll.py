"""The decoder as one CPU or GPU decodes fastest: a block a layer, its kernels output by output.

Stacked, a layer's weights are a slice; where a program reads each weight once for a few tokens, as
decoding does, XLA:CPU spends more time on copying slices than on the products themselves. The order
of a kernel's axes is that of `models.linear.by_outputs`.
"""

import functools
import operator

import jax
from flax import nnx
from jaxtyping import Array

from pintern.models.decoder import Decoder
from pintern.models.linear import Linear
from pintern.models.mlp import MLP


def unrolled(graph: nnx.GraphDef, base: nnx.State) -> tuple[nnx.GraphDef, nnx.State]:
    """The same decoder, split again, with `blocks` as a list of layers, and `out_first`.

    The layers' weights are copies: they stand in memory beside the stacked ones. A decoder that is
    unrolled already is given back.
    """
    decoder: Decoder = nnx.merge(graph, base)
    if decoder.out_first:
        return graph, base
    block, stacked = nnx.split(decoder.blocks)
    layers = _layers(stacked, decoder.config.num_layers)
    decoder.blocks = nnx.List([nnx.merge(block, layer) for layer in layers])
    for _, module in nnx.iter_modules(decoder.blocks):
        if isinstance(module, Linear):
            module.kernel, module.out_first = nnx.Param(_transposed(module.kernel[...])), True
    for block in decoder.blocks:
        block.attention.join()
        if isinstance(block.mlp, MLP):
            block.mlp.join()
    if decoder.head is not None:
        decoder.head = nnx.Param(_transposed(decoder.head[...]))
    decoder.out_first = True
    return nnx.split(decoder)


@functools.partial(jax.jit, static_argnums=1)
def _layers(stacked: nnx.State, count: int) -> list[nnx.State]:
    """All slices by one program."""
    return [jax.tree.map(operator.itemgetter(i), stacked) for i in range(count)]


@jax.jit
def _transposed(kernel: Array) -> Array:
    return kernel.T
