"""One token of one row on a GPU: each map, and what stands around it, as a sum over its weights.

Such a token is hundreds of small kernels, each of which waits for the one before. What a product
reads XLA makes in a kernel of its own, and what is done with the result too. Into a sum over the
weights it takes what is cheap to make again for every output. Hence what a norm divides by is
summed beside the products, and the residual stream is one of the summands.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

BLOCKS = 8  # of two to sixteen any is as good


def is_alone(*batch: int) -> bool:
    """Whether axes of these lengths hold one token, and JAX computes on a GPU."""
    return math.prod(batch) == 1 and jax.default_backend() == "gpu"


def in_blocks(w: Num[Array, "out in"]) -> Num[Array, "block out_of_block in"]:
    """W in blocks of outputs, if it has such: it is read faster so."""
    return w.reshape(1 if len(w) % BLOCKS else BLOCKS, -1, w.shape[1])


def behind_norm(
    x: Float[Array, " in"], w: Num[Array, "out in"], factors: Float[Array, " in"], eps: float
) -> Float[Array, " out"]:
    """RMSNorm(x)·Wᵀ in float32.

    Args:
      x: what the norm reads.
      w: kernel, output by output.
      factors: of the norm, in float32.
      eps: likewise.
    """
    w, x = in_blocks(w).astype(jnp.float32), x.astype(jnp.float32)
    products, squares = jax.lax.reduce(
        (w * (x * factors), jnp.broadcast_to(x * x, w.shape)),
        (jnp.float32(0), jnp.float32(0)),
        lambda a, b: (a[0] + b[0], a[1] + b[1]),
        (2,),
    )
    return (products * jax.lax.rsqrt(squares / len(x) + eps)).reshape(-1)


def onto(
    residual: Float[Array, " out"], x: Float[Array, " in"], w: Num[Array, "out in"]
) -> Float[Array, " out"]:
    """residual + x·Wᵀ, summed in float32, in the dtype of `residual`."""
    blocks = in_blocks(w).astype(jnp.float32)
    first = (jnp.arange(len(x)) == 0).astype(jnp.float32)
    start = residual.astype(jnp.float32).reshape(*blocks.shape[:2], 1) * first
    total = (blocks * x.astype(jnp.float32) + start).sum(-1)
    return total.astype(residual.dtype).reshape(-1)
