"""KL to a teacher: over the whole vocabulary, or over its likeliest tokens and the rest."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def kl_divergence(
    teacher: Float[Array, "*batch vocab"],
    student: Float[Array, "*batch vocab"],
    weights: Float[Array, "*batch"],
    temperature: float,
    top_k: int = 0,
) -> Float[Array, ""]:
    """Weighted sum of T²·KL(teacher ‖ student) at temperature T, in nats.

    With `top_k` both distributions are coarsened: S holds the teacher's k likeliest tokens, and all
    others fall into one bucket,

        KL_k = Σ_{i∈S} p_i·log(p_i/q_i) + p_rest·log(p_rest/q_rest),   p_rest = 1 − Σ_{i∈S} p_i.

    It is a divergence again, at most the whole one, and rises to it with k. Where k is the
    vocabulary or more, or 0, it is the whole one.
    """
    p = jax.nn.log_softmax(teacher / temperature, axis=-1)
    q = jax.nn.log_softmax(student / temperature, axis=-1)
    if 0 < top_k < teacher.shape[-1]:
        _, kept = jax.lax.top_k(p, top_k)
        rest = jnp.put_along_axis(jnp.ones(p.shape, bool), kept, False, axis=-1, inplace=False)
        p, q = (_coarsen(x, kept, rest) for x in (p, q))
    return temperature**2 * jnp.sum(jnp.sum(jnp.exp(p) * (p - q), axis=-1) * weights)


def _coarsen(log_probs: Array, kept: Array, rest: Array) -> Array:
    # Summed in logarithms: 1 − Σ p would be nothing but rounding where the teacher is sure.
    others = jax.nn.logsumexp(log_probs, axis=-1, keepdims=True, where=rest)
    return jnp.concatenate([jnp.take_along_axis(log_probs, kept, axis=-1), others], axis=-1)
