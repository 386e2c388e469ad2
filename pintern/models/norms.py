"""Root-mean-square and layer normalisation."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from pintern.models.config import DecoderConfig


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def normalised(x: Float[Array, "*batch width"], eps: float) -> Float[Array, "*batch width"]:
    """x over its root mean square, `√(mean(x²) + ε)` of its last axis (RMSNorm, 1910.07467).

    The derivative has a sum of products over that axis. Written as such behind a leading axis of 1,
    as the group's mostly is, XLA:CPU takes many times as long for it as for the same product of
    vectors.
    """
    return _normalised_forward(x, eps)[0]


def _normalised_forward(x: Array, eps: float) -> tuple[Array, tuple[Array, Array]]:
    factor = jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps)
    out = x * factor
    return out, (out, factor)


def _normalised_backward(eps: float, residual: tuple[Array, Array], d_out: Array) -> tuple[Array]:
    out, factor = residual
    along = jnp.einsum("...w,...w->...", d_out, out, precision="highest") / out.shape[-1]
    return (factor * (d_out - out * along[..., None]),)


normalised.defvjp(_normalised_forward, _normalised_backward)


class Norm(nnx.Module):
    """Root-mean-square or layer normalisation over the last axis, computed in float32."""

    def __init__(
        self,
        width: int,
        *,
        kind: Literal["rms", "layer"] = "rms",
        eps: float,
        offset: bool = False,
    ):
        self.kind, self.eps, self.offset = kind, eps, offset
        self.scale = nnx.Param(jnp.zeros(width) if offset else jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width)) if kind == "layer" else None

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Normalises in float32 and returns the dtype of `x`."""
        h = x.astype(jnp.float32)
        if self.kind == "layer":
            h = h - h.mean(-1, keepdims=True)
        h = normalised(h, self.eps)
        h = h * self.factors()
        if self.bias is not None:
            h = h + self.bias[...].astype(jnp.float32)
        return h.astype(x.dtype)

    def factors(self) -> Float[Array, " width"]:
        """What normalised values are multiplied by, in float32."""
        scale = self.scale[...].astype(jnp.float32)
        return 1 + scale if self.offset else scale


def norm_of(config: DecoderConfig, width: int | None = None) -> Norm:
    """The norm of a config over `width`, which is the model's where it isn't given."""
    return Norm(
        config.model_dim if width is None else width,
        kind=config.norm,
        eps=config.norm_eps,
        offset=config.norm_offset,
    )
