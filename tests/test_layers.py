"""Pieces of a block whose derivative is written out have that of the plain formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pintern.models.layers import normalised


@pytest.mark.parametrize("shape", [(1, 1, 6, 8), (3, 8)])
def test_a_norm_has_the_derivative_of_the_plain_formula(shape):
    x, wanted = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)

    def plain_formula(x: jax.Array) -> jax.Array:
        return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 0.1)

    found, expected = (
        jax.value_and_grad(lambda x, of=of: (of(x) * wanted).sum())(jnp.asarray(x))
        for of in (lambda x: normalised(x, 0.1), plain_formula)
    )
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=1e-6)
