"""KL to a teacher over its likeliest tokens and the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pintern.training.losses import kl_divergence

VOCAB = 11
ONES = jnp.ones(4)


def logits(seed: int, spread: float = 2.0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(0, spread, (4, VOCAB)), jnp.float32)


def by_hand(teacher, student, top_k, temperature):
    """In float64, with the rest's share as 1 − Σ."""
    total = 0.0
    for t, s in zip(np.asarray(teacher, float), np.asarray(student, float), strict=True):
        p, q = (np.exp(x / temperature) / np.exp(x / temperature).sum() for x in (t, s))
        kept = np.argsort(-p)[:top_k]
        p, q = (np.append(x[kept], 1 - x[kept].sum()) for x in (p, q))
        total += float(np.sum(p * np.log(p / q)))
    return temperature**2 * total


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("top_k", [1, 3, VOCAB - 1])
def test_it_is_the_divergence_of_the_coarsened_distributions(top_k, temperature):
    found = kl_divergence(logits(0), logits(1), ONES, temperature, top_k)
    expected = by_hand(logits(0), logits(1), top_k, temperature)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_it_rises_with_k_to_the_whole_divergence():
    whole = float(kl_divergence(logits(0), logits(1), ONES, 1.0))
    found = [float(kl_divergence(logits(0), logits(1), ONES, 1.0, k)) for k in range(1, VOCAB)]
    assert all(0 < a <= b + 1e-6 for a, b in zip(found, [*found[1:], whole], strict=True))
    assert found[0] < 0.9 * whole
    for k in (VOCAB, VOCAB + 5):
        assert float(kl_divergence(logits(0), logits(1), ONES, 1.0, k)) == whole


@pytest.mark.parametrize("top_k", [1, 2])
def test_it_is_zero_for_the_teacher_itself_and_its_gradient_too(top_k):
    value, gradient = jax.value_and_grad(
        lambda student: kl_divergence(logits(0), student, ONES, 1.0, top_k)
    )(logits(0) + 3.0)
    assert float(value) == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_a_teacher_without_doubt_gives_finite_losses_and_gradients():
    """The rest's share is below float32's spacing at 1."""
    sure = logits(0).at[:, 2].set(80.0)
    value, gradient = jax.value_and_grad(
        lambda student: kl_divergence(sure, student, ONES, 1.0, 2)
    )(logits(1))
    assert np.isfinite(gradient).all()
    assert float(value) == pytest.approx(
        -float(jax.nn.log_softmax(logits(1))[:, 2].sum()), rel=1e-5
    )
