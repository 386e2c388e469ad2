"""Pieces of a block give what the plain formula gives, its derivative included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pintern.adapters.adapter import LoraPair
from pintern.models.linear import Joined, LayerAdapter, Linear, by_a, each_of
from pintern.models.norms import normalised


@pytest.mark.parametrize("shape", [(1, 1, 6, 8), (3, 8)])
def test_a_norm_has_the_derivative_of_the_plain_formula(shape):
    x, wanted = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)

    def plain_formula(x: jax.Array) -> jax.Array:
        return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 0.1)

    found, expected = (
        jax.jit(jax.value_and_grad(lambda x, of=of: (of(x) * wanted).sum()))(jnp.asarray(x))
        for of in (lambda x: normalised(x, 0.1), plain_formula)
    )
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=1e-6)


def linears(*names: str) -> list[Linear]:
    return [Linear(name, 6, 4, bias=False, rngs=nnx.Rngs(0)) for name in names]


def pairs(*ranks: int, group: tuple[int, ...] = ()) -> dict[str, LoraPair]:
    """Of maps a, b, …"""
    rng = np.random.default_rng(1)

    def drawn(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=(*group, *shape)), jnp.float32)

    return {name: LoraPair(drawn(6, r), drawn(r, 4)) for name, r in zip("abc", ranks, strict=False)}


def test_maps_that_read_the_same_share_a_product():
    """Of different ranks; one of them has no pair."""
    maps, x = linears("a", "none", "b"), jax.random.normal(jax.random.key(0), (1, 2, 3, 6))

    def joined(lora, x):
        share = LayerAdapter(lora, 0.5)
        lows = by_a(x, share, [linear.name for linear in maps])
        assert [None if low is None else low.shape[-1] for low in lows] == [2, None, 3]
        return [linear(x, share, low) for linear, low in zip(maps, lows, strict=True)]

    def apart(lora, x):
        return [linear(x, LayerAdapter(lora, 0.5)) for linear in maps]

    with jax.default_matmul_precision("highest"):
        push = jax.tree.map(jnp.cos, jax.jit(apart)(pairs(2, 3), x))

        def pulled(of, lora, x):
            made, pull = jax.vjp(of, lora, x)
            return made, pull(push)

        found, wanted = (
            jax.jit(pulled, static_argnums=0)(of, pairs(2, 3), x) for of in (joined, apart)
        )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "share",
    [
        LayerAdapter(pairs(2)),
        LayerAdapter(pairs(2, 2, group=(3,))),
        LayerAdapter(pairs(2, 2), dropout=0.1, key=jax.random.key(0)),
    ],
    ids=["alone", "groups", "dropout"],
)
def test_maps_that_read_something_of_their_own_share_none(share):
    assert by_a(jnp.ones((3, 1, 2, 6)), share, ["a", "b"]) == [None, None]


@pytest.mark.parametrize("group", [(), (3,)], ids=["one adapter", "one a group"])
@pytest.mark.parametrize("out_first", [False, True])
@pytest.mark.parametrize("held", ["float", "int8"])
def test_joined_maps_give_what_each_gives(group, out_first, held):
    """With biases, of different widths; one of them has no pair."""
    rng = np.random.default_rng(2)
    maps = []
    for name, width in zip(("a", "none", "b"), (4, 8, 4), strict=True):
        linear = Linear(name, 6, width, bias=True, rngs=nnx.Rngs(len(maps)))
        kernel = rng.integers(-9, 9, (width, 6) if out_first else (6, width))
        linear.kernel.set_value(jnp.asarray(kernel, jnp.int8 if held == "int8" else jnp.float32))
        linear.bias.set_value(jnp.asarray(rng.normal(size=width), jnp.float32))
        if held == "int8":
            linear.kernel_scale = nnx.data(nnx.Param(jnp.asarray(rng.random(width), jnp.float32)))
        linear.out_first = out_first
        maps.append(linear)
    x = jnp.asarray(rng.normal(size=(3, 1, 2, 6)), jnp.float32)
    share = LayerAdapter(pairs(2, 3, group=group), 0.5)
    with jax.default_matmul_precision("highest"):
        joined = Joined(maps)
        found = jax.jit(lambda x: joined(x, share))(x)
        wanted = jax.jit(lambda x: each_of(maps, x, share))(x)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
