"""Mixture of experts (Mixtral, 2401.04088): a router sends each token to a few of several MLPs.

No token is dropped and no expert has a capacity: tokens are sorted by expert, and each expert's
matrices meet exactly the tokens that were sent to it. A token's result depends on no other token.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from pintern.models.config import DecoderConfig
from pintern.models.linear import INIT_STD
from pintern.models.mlp import ACTIVATIONS
from pintern.models.sharding import ROWS, gathered, rows_over


@flax.struct.dataclass
class Routed:
    """What the router did with real tokens; sums, so that passes add up.

    Attributes:
      sent: `[layer, expert]`, tokens sent to each expert.
      probability: `[layer, expert]`, sum of the router's probabilities, before the best are taken.
      tokens: `[layer]`, tokens that were routed.
    """

    sent: Float[Array, "*layer expert"]
    probability: Float[Array, "*layer expert"]
    tokens: Float[Array, "*layer"]

    def __add__(self, other: Routed) -> Routed:
        return jax.tree.map(jnp.add, self, other)


class Experts(nnx.Module):
    """Gated MLPs `[expert, in, out]` and the router `[model, expert]` in front of them."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        width, inner, count = config.model_dim, config.mlp_dim, config.num_experts
        out_std = INIT_STD / (2 * config.num_layers) ** 0.5

        def normal(std: float, *shape: int) -> nnx.Param:
            return nnx.Param(std * jax.random.normal(rngs.params(), shape))

        self.count, self.each = count, config.experts_per_token
        self.activation = config.activation
        self.router = normal(INIT_STD, width, count)
        self.gate = normal(INIT_STD, count, width, inner)
        self.up = normal(INIT_STD, count, width, inner)
        self.down = normal(out_std, count, inner, width)
        # `[expert, out]`, where the matrices are held in int8 (`quantize`).
        self.gate_scale: nnx.Param | None = None
        self.up_scale: nnx.Param | None = None
        self.down_scale: nnx.Param | None = None

    def __call__(
        self, x: Float[Array, "*batch model"], real: Bool[Array, "*batch"]
    ) -> tuple[Float[Array, "*batch model"], Routed]:
        """The experts' results, weighted by the router's probabilities over those chosen.

        Args:
          x: the MLP's input.
          real: which tokens are no padding; padding is routed too, but not counted.
        """
        flat = x.reshape(-1, x.shape[-1])
        scores = flat @ self.router[...].astype(x.dtype)
        probability = jax.nn.softmax(scores.astype(jnp.float32), axis=-1)
        weights, chosen = jax.lax.top_k(probability, self.each)
        weights = weights / weights.sum(-1, keepdims=True)

        kernels = Kernels(
            _in_dtype("gate", self.gate, self.gate_scale, x.dtype),
            _in_dtype("up", self.up, self.up_scale, x.dtype),
            _in_dtype("down", self.down, self.down_scale, x.dtype),
        )
        pairs = jnp.repeat(flat, self.each, axis=0)
        out = _on_own_tokens(self.activation, kernels, pairs, chosen.reshape(-1))
        out = out.reshape(-1, self.each, x.shape[-1]) * weights[..., None].astype(x.dtype)

        counted = real.reshape(-1, 1).astype(jnp.float32)
        hits = jax.nn.one_hot(chosen, self.count).sum(1)
        routed = Routed(
            (hits * counted).sum(0), (probability * counted).sum(0), counted.sum(dtype=jnp.float32)
        )
        return out.sum(1).reshape(x.shape), routed


def balance_loss(routed: Routed) -> Float[Array, ""]:
    """Load-balancing loss (Switch, 2101.03961, equations 4–6, over all layers together).

    Number of experts × Σ over experts (share of tokens sent there × mean probability): as large as
    the number of experts per token where all are used alike, and larger where they are not.
    """
    tokens = routed.tokens.sum()
    sent, probability = routed.sent.sum(0) / tokens, routed.probability.sum(0) / tokens
    return routed.sent.shape[-1] * jnp.sum(sent * probability)


def _in_dtype(name: str, param: nnx.Param, scale: nnx.Param | None, dtype: DTypeLike) -> Array:
    kernel = gathered(param[...], f"blocks.mlp.{name}")
    if scale is None:
        return kernel.astype(dtype)
    return (kernel.astype(jnp.float32) * scale[...][:, None]).astype(dtype)


class Kernels(NamedTuple):
    """The experts' matrices."""

    gate: Float[Array, "expert model inner"] | PartitionSpec
    up: Float[Array, "expert model inner"] | PartitionSpec
    down: Float[Array, "expert inner model"] | PartitionSpec


def _on_own_tokens(activation: str, kernels: Kernels, x: Array, expert_of: Array) -> Array:
    """`_experts`, where each device of a mesh sorts the tokens that it has.

    The compiler, which can't split a sort, would have every device do all of them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return _experts(activation, kernels, x, expert_of)
    rows = ROWS if x.shape[0] % rows_over(mesh) == 0 else None
    inner = "tensor" if kernels.gate.shape[-1] % mesh.shape["tensor"] == 0 else None

    def on_device(kernels: Kernels, x: Array, expert_of: Array) -> Array:
        out = _experts(activation, kernels, x, expert_of)
        return out if inner is None else jax.lax.psum(out, inner)

    into, back = PartitionSpec(None, None, inner), PartitionSpec(None, inner, None)
    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(Kernels(into, into, back), PartitionSpec(rows), PartitionSpec(rows)),
        out_specs=PartitionSpec(rows),
        check_vma=False,  # `custom_vmap` and `custom_vjp` say nothing of what varies
    )(kernels, x, expert_of)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _experts(
    activation: str,
    kernels: Kernels,
    x: Float[Array, "token model"],
    expert_of: Int[Array, " token"],
) -> Float[Array, "token model"]:
    """Each token through its expert.

    `ragged_dot` knows no vmap with shared kernels, which is what a population of adapters over one
    base asks for. Tokens don't mix, so a batch of them is just more tokens: value and gradients are
    functions of which vmap is told so. The backward pass makes the inner values again.
    """
    return _by_token(functools.partial(_sorted_mlp, activation))(kernels, x, expert_of)


def _experts_forward(activation: str, kernels: Kernels, x: Array, expert_of: Array):
    return _experts(activation, kernels, x, expert_of), (kernels, x, expert_of)


def _experts_backward(activation: str, kept: tuple[Kernels, Array, Array], dy: Array):
    kernels, x, expert_of = kept

    def to_input(kernels: Kernels, x: Array, expert_of: Array, dy: Array) -> Array:
        _, back = jax.vjp(lambda x: _sorted_mlp(activation, kernels, x, expert_of), x)
        return back(dy)[0]

    # One at a time under vmap: gradients of shared kernels belong to no token.
    @jax.custom_batching.sequential_vmap
    def to_kernels(kernels: Kernels, x: Array, expert_of: Array, dy: Array) -> Kernels:
        _, back = jax.vjp(lambda kernels: _sorted_mlp(activation, kernels, x, expert_of), kernels)
        return back(dy)[0]

    given = (kernels, x, expert_of, dy)
    return to_kernels(*given), _by_token(to_input)(*given), None


_experts.defvjp(_experts_forward, _experts_backward)


def _sorted_mlp(activation: str, kernels: Kernels, x: Array, expert_of: Array) -> Array:
    """Tokens sorted by expert, through the gated MLPs, and back to their order."""
    order = jnp.argsort(expert_of)
    sizes = jnp.bincount(expert_of, length=kernels.gate.shape[0]).astype(jnp.int32)
    x = x[order]
    gate = ACTIVATIONS[activation](jax.lax.ragged_dot(x, kernels.gate, sizes))
    inner = gate * jax.lax.ragged_dot(x, kernels.up, sizes)
    return jax.lax.ragged_dot(inner, kernels.down, sizes)[jnp.argsort(order)]


def _by_token(function: Callable[..., Array]) -> Callable[..., Array]:
    """`function(kernels, *tokens)`, whose vmap joins the batch to the token axis."""
    joined = jax.custom_batching.custom_vmap(function)

    @joined.def_vmap
    def batch(size: int, batched: Sequence, kernels: Kernels, *tokens: Array) -> tuple[Array, bool]:
        over_kernels, *over = batched
        tokens = [
            x if over_x else jnp.broadcast_to(x, (size, *x.shape))
            for x, over_x in zip(tokens, over, strict=True)
        ]
        if any(over_kernels):
            kernels = Kernels(
                *(
                    w if over_w else jnp.broadcast_to(w, (size, *w.shape))
                    for w, over_w in zip(kernels, over_kernels, strict=True)
                )
            )
            return jax.lax.map(lambda given: joined(*given), (kernels, *tokens)), True
        flat = joined(kernels, *(x.reshape(-1, *x.shape[2:]) for x in tokens))
        return flat.reshape(size, -1, flat.shape[-1]), True

    return joined
