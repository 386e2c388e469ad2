"""The frozen base's linear maps in int8: one byte per weight, and one float32 scale per output.

A kernel column w is held as round(w / s) with s = max|w| / 127, so that a weight is off by half a
scale at most. The scale is applied to the product and not to the weights (`linear.Linear`), which
is the same value; experts are dequantised a layer at a time, as it runs. Adapters, norms, biases,
routers, the embedding and the output matrix stay as they are.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int8

from pintern.errors import UserError
from pintern.models.decoder import Decoder
from pintern.models.experts import Experts
from pintern.models.linear import Linear
from pintern.models.sharding import fetch

_LARGEST = 127
# Outputs of a kernel that are quantised at a time.
_BLOCK = 1024


def quantize_kernel(
    kernel: Float[np.ndarray, "*layer in out"],
) -> tuple[Int8[np.ndarray, "*layer in out"], Float[np.ndarray, "*layer out"]]:
    """A kernel as int8, and the scale of each of its outputs. A column of zeros has scale 1.

    On the host, some outputs at a time: so neither a device nor the host holds a float32 copy.
    """
    held = np.empty(kernel.shape, np.int8)
    scale = np.empty((*kernel.shape[:-2], kernel.shape[-1]), np.float32)
    for layer in np.ndindex(kernel.shape[:-2]):
        for start in range(0, kernel.shape[-1], _BLOCK):
            block = (*layer, ..., slice(start, start + _BLOCK))
            wide = kernel[block].astype(np.float32)
            largest = np.abs(wide).max(0) / np.float32(_LARGEST)
            scale[block] = np.where(largest > 0, largest, 1)
            wide /= scale[block]
            held[block] = np.rint(wide, out=wide)
    return held, scale


@functools.partial(jax.jit, static_argnums=2)
def dequantize_kernel(
    kernel: Int8[Array, "*layer in out"], scale: Float[Array, "*layer out"], dtype: DTypeLike
) -> Float[Array, "*layer in out"]:
    """The weights that a quantised kernel stands for."""
    return (kernel.astype(jnp.float32) * scale[..., None, :]).astype(dtype)


def is_quantized(decoder: Decoder) -> bool:
    """Whether the linear maps are held in int8."""
    return any(getattr(module, f"{name}_scale") is not None for module, name in _kernels(decoder))


def quantize(decoder: Decoder) -> None:
    """Holds the decoder's linear maps in int8, in place, one after the other.

    Raises:
      UserError: they are already.
    """
    if is_quantized(decoder):
        raise UserError("This base is quantised already.", "Quantise it once, when it is loaded.")
    for module, name in _kernels(decoder):
        held, scale = quantize_kernel(fetch(getattr(module, name).get_value()))
        _hold(module, name, jnp.asarray(held), jnp.asarray(scale))


def kernel_paths(decoder: Decoder) -> frozenset[str]:
    """Paths of the kernels that `quantize` holds in int8."""
    return frozenset(
        ".".join(("blocks", *map(str, path), name))
        for path, module in nnx.iter_modules(decoder.blocks)
        for name in _KERNELS.get(type(module), ())
    )


def hold_in_int8(abstract: Decoder) -> None:
    """Gives a decoder of shapes, in place, the shapes that a quantised one has."""
    for module, name in _kernels(abstract):
        *stack, width_in, width_out = getattr(module, name).shape
        held = jax.ShapeDtypeStruct((*stack, width_in, width_out), jnp.int8)
        _hold(module, name, held, jax.ShapeDtypeStruct((*stack, width_out), jnp.float32))


def dequantize(decoder: Decoder) -> Decoder:
    """A decoder with ordinary kernels, in the embedding's dtype; itself where nothing is quantised.

    What is merged or saved is this: the weights that the adapter was trained beside, and not those
    that the quantised base was made of.
    """
    if not is_quantized(decoder):
        return decoder
    plain = nnx.clone(decoder)
    dtype = plain.embedding.get_value().dtype
    for module, name in _kernels(plain):
        held, scale = (getattr(module, x).get_value() for x in (name, f"{name}_scale"))
        setattr(module, name, nnx.Param(dequantize_kernel(held, scale, dtype)))
        setattr(module, f"{name}_scale", nnx.static(None))
    return plain


def parameter_bytes(decoder: Decoder) -> int:
    """Memory of all parameters."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(decoder)))


_KERNELS = {Linear: ("kernel",), Experts: ("gate", "up", "down")}


def _kernels(decoder: Decoder) -> list[tuple[nnx.Module, str]]:
    return [
        (module, name)
        for _, module in nnx.iter_modules(decoder.blocks)
        for name in _KERNELS.get(type(module), ())
    ]


def _hold(module: nnx.Module, name: str, held: Any, scale: Any) -> None:
    setattr(module, name, nnx.Param(held))
    setattr(module, f"{name}_scale", nnx.data(nnx.Param(scale)))
