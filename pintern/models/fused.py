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
) -> Float[Array, "group row query heads*dim"]:
    """`Attention.attend`, by the implementation that was chosen."""
    # A single token, as decoding reads it, has no scores that are worth a kernel.
    if attention.implementation == "xla" or q.shape[2] == 1:
        return attention.attend(q, prefix, own, masks)
    implementation, scale = attention.implementation, attention.scale
    return fused_attention(q, prefix, own, masks, scale=scale, implementation=implementation)


def fused_attention(
    q: Float[Array, "group row query heads dim"],
    prefix: KV | None,
    own: KV,
    masks: Masks,
    *,
    scale: float,
    implementation: Literal["cudnn", "xla"],
) -> Float[Array, "group row query heads*dim"]:
    """What `Attention.attend` computes, without soft cap and ALiBi.

    Args:
      q: queries.
      prefix: `[group, kv_head, prefix_slot, dim]`, shared by all rows of a group, or None.
      own: `[group, kv_head, row, own_slot, dim]`.
      masks: who sees what.
      scale: of the scores.
      implementation: of `jax.nn.dot_product_attention`.
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
    out = jax.nn.dot_product_attention(
        q.reshape(group * row, query, heads, dim),
        keys,
        values,
        mask=mask.reshape(group * row, 1, query, -1),
        scale=scale,
        implementation=implementation,
    )
    return out.reshape(group, row, query, heads * dim)


def use_cudnn(blocks: nnx.Module, config: DecoderConfig, dtype: jnp.dtype) -> None:
    """Has a decoder's blocks read rows and prefixes with cuDNN's kernel; single tokens as before.

    Raises:
      UserError: not on an NVIDIA GPU, not in bfloat16, or a family with soft cap or ALiBi.
    """
    wrong = None
    if jax.default_backend() != "gpu":
        wrong = f"JAX computes on {jax.default_backend()}; cuDNN is NVIDIA's, for its GPUs"
    elif dtype != jnp.bfloat16:
        wrong = f"the base is in {dtype}; cuDNN's kernel takes bfloat16 (config.model.dtype)"
    elif config.score_cap is not None or config.positions == "alibi":
        kind = "ALiBi" if config.positions == "alibi" else "a soft cap on scores"
        wrong = f"this family has {kind}, which is not handed to cuDNN here"
    if wrong:
        raise UserError(f"config.model.attention is 'cudnn', but {wrong}.", "Set it to 'xla'.")
    blocks.attention.implementation = "cudnn"
