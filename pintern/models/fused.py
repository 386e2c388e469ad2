"""Attention by a library's fused kernel, which never writes scores to memory: cuDNN's, on a GPU.

Such a kernel takes one sequence of keys per row, so a shared prefix is repeated for every row; that
costs memory, and little of it beside the scores. The linear maps still meet the prefix once.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from pintern.errors import UserError
from pintern.models.attention import KV, Attention, Masks
from pintern.models.config import DecoderConfig


def attend(
    attention: Attention,
    q: Float[Array, "group row query heads dim"],
    prefix: KV | None,
    own: KV,
    masks: Masks,
    *,
    causal: bool = False,
) -> Float[Array, "group row query heads*dim"]:
    """`Attention.attend`, by the implementation that was chosen.

    `causal` is `fused_attention`'s.
    """
    # A single token, as decoding reads it, has no scores that are worth a kernel; and cuDNN takes
    # an even number of queries, which rows have by their padding, and soft prompts needn't have.
    if attention.implementation == "xla" or q.shape[2] % 2:
        return attention.attend(q, prefix, own, masks)
    implementation, scale = attention.implementation, attention.scale
    return fused_attention(
        q, prefix, own, masks, scale=scale, implementation=implementation, causal=causal
    )


def fused_attention(
    q: Float[Array, "group row query heads dim"],
    prefix: KV | None,
    own: KV,
    masks: Masks,
    *,
    scale: float,
    implementation: Literal["cudnn", "xla"],
    causal: bool = False,
) -> Float[Array, "group row query heads*dim"]:
    """What `Attention.attend` computes, without soft cap and ALiBi.

    Args:
      q: queries.
      prefix: `[group, kv_head, prefix_slot, dim]`, shared by all rows of a group, or None.
      own: `[group, kv_head, row, own_slot, dim]`.
      masks: who sees what.
      scale: of the scores.
      implementation: of `jax.nn.dot_product_attention`.
      causal: whether `masks.own` hides no more than what comes later, and padding behind a row's
        tokens. Without a prefix the kernel then takes no mask, and makes half the scores.
    """
    group, row, query, heads, dim = q.shape

    def by_row(x: Float[Array, "group kv_head row slot dim"]) -> Array:
        x = jnp.transpose(x, (0, 2, 3, 1, 4)).astype(q.dtype)
        return x.reshape(group * row, *x.shape[2:])

    keys, values, mask = by_row(own.keys), by_row(own.values), masks.own
    if prefix is not None:
        shared = [
            by_row(jnp.repeat(x[:, :, None], row, axis=2)) for x in (prefix.keys, prefix.values)
        ]
        keys = jnp.concatenate([shared[0], keys], axis=1)
        values = jnp.concatenate([shared[1], values], axis=1)
        mask = jnp.concatenate([masks.prefix, mask], axis=-1)
    causal = causal and prefix is None
    if keys.shape[1] % 2:  # and an even number of keys: one more that nobody sees
        keys, values = (jnp.pad(x, [(0, 0), (0, 1), (0, 0), (0, 0)]) for x in (keys, values))
        mask = jnp.pad(mask, [(0, 0), (0, 0), (0, 0), (0, 1)])
    out = jax.nn.dot_product_attention(
        q.reshape(group * row, query, heads, dim),
        keys,
        values,
        mask=None if causal else mask.reshape(group * row, 1, query, -1),
        is_causal=causal,
        scale=scale,
        implementation=implementation,
    )
    return out.reshape(group, row, query, heads * dim)


def choose_attention(
    blocks: nnx.Module, config: DecoderConfig, dtype: jnp.dtype, wanted: str
) -> None:
    """Has a decoder's blocks read rows and prefixes as is `wanted`; single tokens as before.

    Args:
      blocks: of the decoder.
      config: its.
      dtype: of the base.
      wanted: `xla`; `cudnn`; or `auto`, which is cuDNN's kernel on one GPU that has it, where it
        was the faster one (`benchmarks.training_gpu`), and else XLA.

    Raises:
      UserError: cuDNN's is wanted by name where it can't be had.
    """
    wrong = None if wanted == "xla" else _against_cudnn(config, dtype)
    if wanted == "cudnn" and wrong:
        raise UserError(f"config.model.attention is 'cudnn', but {wrong}.", "Set it to 'auto'.")
    with_cudnn = wanted == "cudnn" or (
        wanted == "auto" and wrong is None and jax.device_count() == 1
    )
    blocks.attention.implementation = "cudnn" if with_cudnn else "xla"


def _against_cudnn(config: DecoderConfig, dtype: jnp.dtype) -> str | None:
    """Why cuDNN's kernel can't be had, if so."""
    if jax.default_backend() != "gpu":
        return f"JAX computes on {jax.default_backend()}; cuDNN is NVIDIA's, for its GPUs"
    capability = getattr(jax.devices()[0], "compute_capability", "0")
    if not capability.replace(".", "").isdigit():  # AMD's is gfx90a, say
        return f"the GPU is {capability}; cuDNN is NVIDIA's, for its GPUs"
    if float(capability) < 8:
        return f"the GPU has compute capability {capability}; cuDNN's kernel takes 8.0 or more"
    if dtype != jnp.bfloat16:
        return f"the base is in {dtype}; cuDNN's kernel takes bfloat16 (config.model.dtype)"
    if config.head_dim % 8 or config.head_dim > 128:
        return f"heads have {config.head_dim} dimensions; it takes multiples of 8 up to 128"
    if config.positions == "alibi":
        return "this family has ALiBi, which is not handed to cuDNN here"
    if config.score_cap is not None:
        return "this family has a soft cap on scores, which is not handed to cuDNN here"
    return None
