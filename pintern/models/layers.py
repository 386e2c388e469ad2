"""The pieces of a block beside its linear maps: norms and the MLP."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from pintern.models.config import DecoderConfig
from pintern.models.linear import INIT_STD, Joined, LayerAdapter, Linear, each_of

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
}


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
        scale = self.scale[...].astype(jnp.float32)
        h = h * (1 + scale if self.offset else scale)
        if self.bias is not None:
            h = h + self.bias[...].astype(jnp.float32)
        return h.astype(x.dtype)


def norm_of(config: DecoderConfig, width: int | None = None) -> Norm:
    """The norm of a config over `width`, which is the model's where it isn't given."""
    return Norm(
        config.model_dim if width is None else width,
        kind=config.norm,
        eps=config.norm_eps,
        offset=config.norm_offset,
    )


class MLP(nnx.Module):
    """Gated (`down(act(gate) · up)`) or plain (`down(act(up))`) feed-forward map.

    Attributes:
      joined: gate and up, where they are one map (`join`).
    """

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        width, inner, bias = config.model_dim, config.mlp_dim, config.mlp_bias
        out_std = INIT_STD / (2 * config.num_layers) ** 0.5
        self.activation = config.activation
        self.gate = (
            Linear("mlp.gate", width, inner, bias=bias, rngs=rngs)
            if config.mlp == "gated"
            else None
        )
        self.up = Linear("mlp.up", width, inner, bias=bias, rngs=rngs)
        self.down = Linear("mlp.down", inner, width, bias=bias, rngs=rngs, std=out_std)
        self.joined: Joined | None = None

    def __call__(
        self, x: Float[Array, "*batch model"], adapter: LayerAdapter
    ) -> Float[Array, "*batch model"]:
        """Maps `[..., model]` to `[..., model]`."""
        act = ACTIVATIONS[self.activation]

        # The activation is made again in the backward pass: else every step within it, and what
        # `down` read for its LoRA pair, is kept, each of the block's greatest width. Of `down`
        # itself nothing is made again, since its product is not needed there. A GPU keeps what
        # `down` read: it is in memory anyway, and to make it again takes longer than to read it.
        on_gpu = jax.default_backend() == "gpu"
        kept = jax.checkpoint_policies.save_only_these_names(*["mlp.inner"] * on_gpu)

        @functools.partial(jax.checkpoint, policy=kept, prevent_cse=not on_gpu)
        def after_up(
            up: Float[Array, "*batch inner"], gate: Float[Array, "*batch inner"] | None
        ) -> Float[Array, "*batch model"]:
            inner = act(up) if gate is None else act(gate) * up
            return self.down(checkpoint_name(inner, "mlp.inner"), adapter)

        if self.joined is not None:
            gate, up = self.joined(x, adapter)
        elif self.gate is not None:
            gate, up = each_of((self.gate, self.up), x, adapter)
        else:
            gate, up = None, self.up(x, adapter)
        return after_up(up, gate)

    def join(self) -> None:
        """Makes one map of the two that read the same."""
        if self.gate is not None:
            self.joined = nnx.data(Joined((self.gate, self.up)))
            self.gate = self.up = nnx.static(None)
