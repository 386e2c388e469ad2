"""The pieces of a block: norms, linear maps with an optional LoRA update, MLP."""

import functools
import itertools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray

from pintern.adapters.adapter import LoraPair
from pintern.models.config import DecoderConfig
from pintern.models.sharding import gathered

INIT_STD = 0.02
_FEW_ROWS = 64  # from about 128 on XLA:CPU multiplies as fast in either order
_BLOCKS = 8  # of two to sixteen any is as good
ACTIVATIONS = {
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
}


class LayerAdapter(NamedTuple):
    """One layer's share of an adapter, as it travels through a block.

    Attributes:
      lora: module name to the layer's `A [in, rank]` and `B [rank, out]`; with a leading group axis
        where each group of rows has an adapter of its own.
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
    element by element in the wrong order.
    """
    return x @ w


def _matmul_forward(x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ w, (x, w)


def _matmul_backward(residual: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, w = residual
    x, dy = jax.lax.optimization_barrier((x, dy))
    if x.shape[-1] <= dy.shape[-1]:
        dw = jnp.einsum("...i,...o->io", x, dy)
    else:
        # The left factor is transposed in memory: let it be the thin one, as with LoRA's A.
        dw = jax.lax.optimization_barrier(jnp.einsum("...i,...o->oi", x, dy)).T
    return dy @ w.T, dw


matmul.defvjp(_matmul_forward, _matmul_backward)


def by_outputs(
    x: Float[Array, "*batch in"], w: Float[Array, "out in"]
) -> Float[Array, "*batch out"]:
    """x·Wᵀ for a W that lies output by output, as `evaluation.unroll` lays it.

    XLA:CPU packs a product's right factor before it multiplies. With a few rows that costs more
    than multiplying, so the few rows are made the right factor; the barrier keeps it so. A single
    row meets W in blocks of outputs, as a batch of products: W is read faster so, on a GPU too.
    """
    barrier = jax.lax.optimization_barrier
    flat = x.reshape(-1, x.shape[-1])
    rows, outputs = len(flat), len(w)
    if rows == 1 and outputs % _BLOCKS == 0:
        repeated = barrier(jnp.broadcast_to(flat, (_BLOCKS, *flat.shape)))
        blocks = w.reshape(_BLOCKS, -1, w.shape[1])
        y = barrier(jnp.einsum("boi,bri->bor", blocks, repeated))
    elif rows <= _FEW_ROWS:
        y = jax.lax.platform_dependent(
            w, flat, cpu=lambda w, x: barrier(w @ x.T).T, default=lambda w, x: x @ w.T
        )
    else:
        y = flat @ w.T
    return y.reshape(*x.shape[:-1], outputs)


def _by_group(
    x: Float[Array, "group row slot in"], w: Float[Array, "group in out"]
) -> Float[Array, "group row slot out"]:
    """Each group's x by its own W."""
    return jnp.einsum("grsi,gio->grso", x, w)


class Linear(nnx.Module):
    """y = x·W + b + scale · dropout(x)·A·B, the last term only where the adapter names it.

    Attributes:
      kernel: W `[in, out]`; `[out, in]` where `out_first`; `[layer, in, out]` where `number` tells
        which of them is its own (`models.stack`).
      kernel_scale: of each output, where the kernel is held in int8 (`quantize`).
    """

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
        self.out_first = False
        self.number: Array | None = None
        self.kernel_scale: nnx.Param | None = None
        self.bias = nnx.Param(jnp.zeros(width_out)) if bias else None

    def __call__(
        self,
        x: Float[Array, "*batch in"],
        adapter: LayerAdapter,
        low: Float[Array, "*batch rank"] | None = None,
    ) -> Float[Array, "*batch out"]:
        """Maps `[..., in]` to `[..., out]` in the dtype of `x`; `low` as `by_a` gives it."""
        y = self._product(x)
        if self.kernel_scale is not None:
            y = (y * self.kernel_scale[...]).astype(x.dtype)
        if self.bias is not None:
            y = y + self.bias[...].astype(x.dtype)
        pair = adapter.lora.get(self.name)
        if pair is not None:
            if adapter.key is not None and adapter.dropout > 0:
                x = _dropout(x, adapter.dropout, adapter.key, self.name)
            product = matmul if pair.a.ndim == 2 else _by_group
            if low is None:
                low = product(x, pair.a.astype(x.dtype))
            # Scaled before B, where it is narrow, and the sum is left to the product.
            y = y + product(adapter.scale * low, pair.b.astype(x.dtype))
        return y

    def _product(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        def by(kernel: Num[Array, "in out"], x: Array) -> Array:
            kernel = gathered(kernel, f"blocks.{self.name}.kernel").astype(x.dtype)
            return (by_outputs if self.out_first else matmul)(x, kernel)

        if self.number is None:
            return by(self.kernel[...], x)

        # What the backward pass needs of the stack, it takes out again.
        @functools.partial(jax.checkpoint, prevent_cse=False)
        def own(stack: Num[Array, "layer in out"], number: Int[Array, ""], x: Array) -> Array:
            return by(jax.lax.dynamic_index_in_dim(stack, number, keepdims=False), x)

        return own(self.kernel[...], self.number, x)


def by_a(
    x: Float[Array, "*batch in"], adapter: LayerAdapter, *linears: Linear
) -> list[Float[Array, "*batch rank"] | None]:
    """What maps that read the same x make of it with their A, in one product.

    One by one each would read x, and in the backward pass read and write x's gradient. None where a
    map has no pair, or makes its own: under dropout, and of groups.
    """
    names = [linear.name for linear in linears]
    pairs = {name: adapter.lora[name] for name in names if name in adapter.lora}
    dropped = adapter.key is not None and adapter.dropout > 0
    if len(pairs) < 2 or dropped or any(pair.a.ndim > 2 for pair in pairs.values()):
        return [None] * len(names)
    joined = jnp.concatenate([pair.a for pair in pairs.values()], axis=1)
    ends = itertools.accumulate(pair.a.shape[1] for pair in pairs.values())
    lows = jnp.split(matmul(x, joined.astype(x.dtype)), list(ends)[:-1], axis=-1)
    found = dict(zip(pairs, lows, strict=True))
    return [found.get(name) for name in names]


def _dropout(
    x: Float[Array, "*batch slot in"], rate: float, key: PRNGKeyArray, name: str
) -> Float[Array, "*batch slot in"]:
    # One stream per module: the name's bytes, so that the order of modules doesn't matter.
    key = jax.random.fold_in(key, int.from_bytes(name.encode(), "little") % (2**31))
    # Drawn slot by slot: an element's bits depend on its number alone (jax_threefry_partitionable),
    # so that padding at the end of the rows leaves what real tokens lose as it was.
    *batch, slots, width = x.shape
    keep = jax.random.bernoulli(key, 1 - rate, (slots, *batch, width))
    return jnp.where(jnp.moveaxis(keep, 0, -2), x / (1 - rate), 0)


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

        if self.gate is None:
            return after_up(self.up(x, adapter), None)
        of_gate, of_up = by_a(x, adapter, self.gate, self.up)
        return after_up(self.up(x, adapter, of_up), self.gate(x, adapter, of_gate))
