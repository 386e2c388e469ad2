"""Mixture of experts (Mixtral, 2401.04088): a router sends each token to a few of several MLPs.

No token is dropped and no expert has a capacity: tokens are sorted by expert, and each expert's
matrices meet exactly the tokens that were sent to it. A token's result depends on no other token.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from pintern.models.config import DecoderConfig
from pintern.models.layers import ACTIVATIONS, INIT_STD


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

        expert_of = chosen.reshape(-1)
        order = jnp.argsort(expert_of)
        sizes = jnp.bincount(expert_of, length=self.count)
        sent = flat[order // self.each]

        def through(rows: Array, kernels: nnx.Param) -> Array:
            return jax.lax.ragged_dot(rows, kernels[...].astype(rows.dtype), sizes)

        inner = ACTIVATIONS[self.activation](through(sent, self.gate)) * through(sent, self.up)
        # Back to the tokens' order.
        out = through(inner, self.down)[jnp.argsort(order)]
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
