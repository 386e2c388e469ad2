"""Linear maps with an optional LoRA update: one by one, and several that read the same."""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray

from pintern.adapters.adapter import LoraPair
from pintern.models import alone
from pintern.models.norms import Norm
from pintern.models.sharding import gathered

INIT_STD = 0.02
_FEW_ROWS = 64  # from about 128 on XLA:CPU multiplies as fast in either order


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
    blocks = alone.in_blocks(w)
    if rows == 1 and len(blocks) > 1:
        repeated = barrier(jnp.broadcast_to(flat, (len(blocks), *flat.shape)))
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
        return _updated(self.unadapted(x), x, self.name, adapter, low)

    def added(
        self,
        x: Float[Array, "*batch in"],
        adapter: LayerAdapter,
        residual: Float[Array, "*batch out"],
    ) -> Float[Array, "*batch out"]:
        """`residual`, and what the map makes of x; of a token alone in one sum."""
        plain = self.bias is None and self.kernel_scale is None and self.name not in adapter.lora
        if plain and self.out_first and alone.is_alone(*x.shape[:-1]):
            out = alone.onto(residual.reshape(-1), x.reshape(-1), self.kernel[...])
            return out.reshape(residual.shape)
        return residual + self(x, adapter)

    def unadapted(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        """x·W + b."""
        return self._finished(self._product(x), x.dtype)

    def behind(self, norm: Norm, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        """norm(x)·W + b of a token alone in one sum."""
        y = alone.behind_norm(x.reshape(-1), self.kernel[...], norm.factors(), norm.eps)
        return self._finished(y.reshape(*x.shape[:-1], -1), x.dtype)

    def _finished(
        self, y: Float[Array, "*batch out"], dtype: DTypeLike
    ) -> Float[Array, "*batch out"]:
        """A product in its dtype, with what int8 and the bias ask for."""
        if self.kernel_scale is not None:
            y = y * self.kernel_scale[...]
        y = y.astype(dtype)
        return y if self.bias is None else y + self.bias[...].astype(dtype)

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


class Joined(nnx.Module):
    """Maps that read the same, as one product of all their outputs, for decoding
    (`evaluation.unroll`): a token's time is that of many small products.

    Args:
      maps: none of them in a stack.

    Attributes:
      names: of the maps, as an adapter has them.
      ends: of each map's outputs but the last one's, among those of all.
      whole: the map to all outputs.
    """

    def __init__(self, maps: Sequence[Linear]):
        first = maps[0]
        axis = 0 if first.out_first else 1
        self.names = tuple(linear.name for linear in maps)
        self.ends = tuple(itertools.accumulate(m.kernel.shape[axis] for m in maps[:-1]))
        self.whole = nnx.clone(first)
        self.whole.name = "+".join(self.names)
        for name, along in (("kernel", axis), ("kernel_scale", 0), ("bias", 0)):
            if getattr(first, name) is not None:
                values = [getattr(m, name)[...] for m in maps]
                getattr(self.whole, name).set_value(jnp.concatenate(values, along))

    def __call__(
        self, x: Float[Array, "*batch in"], adapter: LayerAdapter, norm: Norm | None = None
    ) -> list[Float[Array, "*batch out"]]:
        """What each map makes of x; of norm(x) where a norm is given, for a token alone."""
        if norm is not None and adapter.lora.keys().isdisjoint(self.names):
            return jnp.split(self.whole.behind(norm, x), self.ends, axis=-1)
        x = x if norm is None else norm(x)
        parts = jnp.split(self.whole.unadapted(x), self.ends, axis=-1)
        lows = by_a(x, adapter, self.names)
        found = zip(parts, self.names, lows, strict=True)
        return [_updated(y, x, name, adapter, low) for y, name, low in found]


def each_of(
    maps: Sequence[Linear], x: Float[Array, "*batch in"], adapter: LayerAdapter
) -> list[Float[Array, "*batch out"]]:
    """What each of several maps makes of the x that all of them read."""
    lows = by_a(x, adapter, [linear.name for linear in maps])
    return [linear(x, adapter, low) for linear, low in zip(maps, lows, strict=True)]


def by_a(
    x: Float[Array, "*batch in"], adapter: LayerAdapter, names: Sequence[str]
) -> list[Float[Array, "*batch rank"] | None]:
    """What maps that read the same x make of it with their A, in one product.

    One by one each would read x, and in the backward pass read and write x's gradient. None where a
    map has no pair, or makes its own: under dropout, and of groups.
    """
    pairs = {name: adapter.lora[name] for name in names if name in adapter.lora}
    dropped = adapter.key is not None and adapter.dropout > 0
    if len(pairs) < 2 or dropped or any(pair.a.ndim > 2 for pair in pairs.values()):
        return [None] * len(names)
    joined = jnp.concatenate([pair.a for pair in pairs.values()], axis=1)
    ends = itertools.accumulate(pair.a.shape[1] for pair in pairs.values())
    lows = jnp.split(matmul(x, joined.astype(x.dtype)), list(ends)[:-1], axis=-1)
    found = dict(zip(pairs, lows, strict=True))
    return [found.get(name) for name in names]


def _updated(
    y: Float[Array, "*batch out"],
    x: Float[Array, "*batch in"],
    name: str,
    adapter: LayerAdapter,
    low: Float[Array, "*batch rank"] | None,
) -> Float[Array, "*batch out"]:
    """y, and what the map's pair adds to it, where the adapter has one."""
    pair = adapter.lora.get(name)
    if pair is None:
        return y
    if adapter.key is not None and adapter.dropout > 0:
        x = _dropout(x, adapter.dropout, adapter.key, name)
    product = matmul if pair.a.ndim == 2 else _by_group
    if low is None:
        low = product(x, pair.a.astype(x.dtype))
    # Scaled before B, where it is narrow, and the sum is left to the product.
    return y + product(adapter.scale * low, pair.b.astype(x.dtype))


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
