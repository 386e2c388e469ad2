"""LoRA folded into the base: W + scale·A·B, so that serving pays nothing for the adapter."""

import jax.numpy as jnp
from flax import nnx

from pintern.adapters.adapter import Adapter
from pintern.models.decoder import Decoder
from pintern.models.linear import Linear
from pintern.models.quantize import dequantize


def merge_lora(decoder: Decoder, adapter: Adapter) -> Decoder:
    """A copy of the decoder with every LoRA pair added to its kernel in float32.

    A quantised base is dequantised: those are the weights that the pairs were trained beside.
    The soft prompt, if any, stays with the adapter: it is a prompt and not a weight.
    """
    merged = nnx.clone(dequantize(decoder))
    for _, module in nnx.iter_modules(merged.blocks):
        if isinstance(module, Linear) and module.name in adapter.lora:
            pair, kernel = adapter.lora[module.name], module.kernel[...]
            a, b = pair.a.astype("float32"), pair.b.astype("float32")
            change = adapter.scale * jnp.matmul(a, b, precision="highest")
            module.kernel[...] = (kernel.astype("float32") + change).astype(kernel.dtype)
    return merged
