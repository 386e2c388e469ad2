"""The pieces of a block: norms, linear maps with an optional LoRA update, rotary angles, MLP."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from pintern.adapters.adapter import LoraPair
from pintern.models.config import DecoderConfig

INIT_STD = 0.02
_ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
}


class LayerAdapter(NamedTuple):
    """One layer's share of an adapter, as it travels through a block.

    Attributes:
      lora: module name to the layer's `A [in, rank]` and `B [rank, out]`.
      scale: factor of the update.
      dropout: rate on A's input.
      key: random key of the dropout; None switches it off (inference).
    """

    lora: dict[str, LoraPair]
    scale: float = 1.0
    dropout: float = 0.0
    key: PRNGKeyArray | None = None


@jax.custom_vjp
def matmul(x: Float[Array, "*batch in"], w: Float[Array, "in out"]) -> Float[Array, "*batch out"]:
    """x·W, whose backward pass reads its operands from memory as they are.

    Without the barrier XLA:CPU fuses the producer of the incoming gradient (an activation's
    derivative, a softmax) into the transposed copy that the weight gradient wants, and computes it
    element by element in the wrong order: a training step of the nano model took twice as long.
    """
    return x @ w


def _matmul_forward(x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ w, (x, w)


def _matmul_backward(residual: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, w = residual
    x, dy = jax.lax.optimization_barrier((x, dy))
    return dy @ w.T, jnp.einsum("...i,...o->io", x, dy)


matmul.defvjp(_matmul_forward, _matmul_backward)


class Linear(nnx.Module):
    """y = x·W + b + scale · dropout(x)·A·B, the last term only where the adapter names it."""

    def __init__(
        self,
        name: str,
        width_in: int,
        width_out: int,
        *,
        bias: bool,
        rngs: nnx.Rngs,
        std: float = INIT_STD,
    ):
        self.name = name
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), (width_in, width_out)))
        # Of each output, where the kernel is held in int8 (`quantize`).
        self.kernel_scale: nnx.Param | None = None
        self.bias = nnx.Param(jnp.zeros(width_out)) if bias else None

    def __call__(
        self, x: Float[Array, "*batch in"], adapter: LayerAdapter
    ) -> Float[Array, "*batch out"]:
        """Maps `[..., in]` to `[..., out]` in the dtype of `x`."""
        y = matmul(x, self.kernel[...].astype(x.dtype))
        if self.kernel_scale is not None:
            y = (y * self.kernel_scale[...]).astype(x.dtype)
        if self.bias is not None:
            y = y + self.bias[...].astype(x.dtype)
        pair = adapter.lora.get(self.name)
        if pair is not None:
            if adapter.key is not None and adapter.dropout > 0:
                x = _dropout(x, adapter.dropout, adapter.key, self.name)
            low = matmul(x, pair.a.astype(x.dtype))
            y = y + adapter.scale * matmul(low, pair.b.astype(x.dtype))
        return y


def _dropout(
    x: Float[Array, "*batch in"], rate: float, key: PRNGKeyArray, name: str
) -> Float[Array, "*batch in"]:
    # One stream per module: the name's bytes, so that the order of modules doesn't matter.
    key = jax.random.fold_in(key, int.from_bytes(name.encode(), "little") % (2**31))
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0)


class Norm(nnx.Module):
    """Root-mean-square or layer normalisation over the last axis, computed in float32."""

    def __init__(self, config: DecoderConfig):
        self.kind = config.norm
        self.eps = config.norm_eps
        self.scale = nnx.Param(jnp.ones(config.model_dim))
        self.bias = nnx.Param(jnp.zeros(config.model_dim)) if config.norm == "layer" else None

    def __call__(self, x: Float[Array, "*batch model"]) -> Float[Array, "*batch model"]:
        """Normalises in float32 and returns the dtype of `x`."""
        h = x.astype(jnp.float32)
        if self.kind == "layer":
            h = h - h.mean(-1, keepdims=True)
        h = h * jax.lax.rsqrt(jnp.mean(h * h, -1, keepdims=True) + self.eps)
        h = h * self.scale[...].astype(jnp.float32)
        if self.bias is not None:
            h = h + self.bias[...].astype(jnp.float32)
        return h.astype(x.dtype)


class MLP(nnx.Module):
    """Gated (`down(act(gate) · up)`) or plain (`down(act(up))`) feed-forward map."""

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

    def __call__(
        self, x: Float[Array, "*batch model"], adapter: LayerAdapter
    ) -> Float[Array, "*batch model"]:
        """Maps `[..., model]` to `[..., model]`."""
        act = _ACTIVATIONS[self.activation]
        up = self.up(x, adapter)
        inner = act(up) if self.gate is None else act(self.gate(x, adapter)) * up
        return self.down(inner, adapter)


def rotary_angles(
    positions: Int[Array, "*batch"], head_dim: int, theta: float
) -> tuple[Float[Array, "*batch half"], Float[Array, "*batch half"]]:
    """Cosine and sine of the rotary angles (RoPE, 2104.09864), one per pair of dimensions."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def apply_rotary(
    x: Float[Array, "*batch heads dim"],
    cos: Float[Array, "*batch half"],
    sin: Float[Array, "*batch half"],
) -> Float[Array, "*batch heads dim"]:
    """Rotates the first half of each head against its second half (Hugging Face's layout)."""
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = cos[..., None, :].astype(x.dtype), sin[..., None, :].astype(x.dtype)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
