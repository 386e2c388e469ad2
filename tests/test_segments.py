"""The softmax over segments has the derivative that JAX finds for the plain formula."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pintern.models import segments as implementation
from pintern.models.segments import Segment, mix
from pintern.models.sharding import make_mesh

GROUP, KV_HEAD, ROW, HEAD, QUERY, DIM = 2, 2, 3, 2, 5, 4
BENDS = {
    "plain": lambda score, distance: score,
    "soft cap": lambda score, distance: 2.0 * jnp.tanh(score / 2.0),
    "distance": lambda score, distance: score - 0.3 * distance[:, None, :, None],
}


def segments(*, padded: bool) -> tuple[Segment, Segment]:
    """A prefix that the rows share, and the rows' own slots, which they see causally."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    found = []
    for slots, owner in ((7, (GROUP, KV_HEAD)), (QUERY, (GROUP, KV_HEAD, ROW))):
        mask = np.ones((GROUP, ROW, QUERY, slots), bool)
        if owner[2:]:
            mask &= np.tril(np.ones((QUERY, QUERY), bool))
        if padded:
            mask[..., 1] = False
            mask[0, 1] = False  # a row that sees nothing at all
        distance = jnp.asarray(rng.integers(0, 9, mask.shape))
        keys, values = normal(*owner, slots, DIM), normal(*owner, slots, DIM)
        found.append(Segment(keys, values, jnp.asarray(mask), distance))
    return tuple(found)


def plain(bend, q, parts):
    """Scores of all segments side by side, and JAX's softmax."""
    scores, values = [], []
    for part in parts:
        keys, value = (
            jnp.broadcast_to(
                x if x.ndim == 5 else x[:, :, None], (GROUP, KV_HEAD, ROW, *x.shape[-2:])
            )
            for x in (part.keys, part.values)
        )
        score = bend(jnp.einsum("gkrhtd,gkrsd->gkrhts", q, keys), part.distance)
        scores.append(jnp.where(part.mask[:, None, :, None], score, -1e30))
        values.append(value)
    weights = jax.nn.softmax(jnp.concatenate(scores, -1), axis=-1)
    out = jnp.einsum("gkrhts,gkrsd->grtkhd", weights, jnp.concatenate(values, -2))
    return out.reshape(GROUP, ROW, QUERY, -1)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("name", "heads"),
    [*((name, "together") for name in BENDS), ("plain", "in turn"), ("soft cap", "in turn")],
)
def test_values_and_derivatives_are_those_of_the_plain_formula(name, heads, padded, monkeypatch):
    rng = np.random.default_rng(1)
    shape = (GROUP, KV_HEAD, ROW, HEAD, QUERY, DIM)
    q = jnp.asarray(rng.normal(size=shape), jnp.float32)
    wanted = rng.normal(size=(GROUP, ROW, QUERY, KV_HEAD * HEAD * DIM)).astype(np.float32)
    parts = segments(padded=padded)
    if heads == "in turn":
        monkeypatch.setattr(implementation, "_MANY", 0)
        parts = tuple(part._replace(distance=None) for part in parts)
    if padded:
        wanted[0, 1] = 0.0  # nothing is learned from what sees nothing

    def loss(of, q, floats):
        split = tuple(
            part._replace(keys=keys, values=values)
            for part, (keys, values) in zip(parts, floats, strict=True)
        )
        out = of(BENDS[name], q, split)
        return (out * wanted).sum(), out

    floats = [(part.keys, part.values) for part in parts]
    with jax.default_matmul_precision("highest"):
        lowered = [
            jax.jit(jax.grad(loss, (1, 2), has_aux=True), static_argnums=0).lower(of, q, floats)
            for of in (mix, plain)
        ]
        found, expected = (program.compile()(q, floats) for program in lowered)
    # Forward and backward.
    assert lowered[0].as_text().count("stablehlo.while") == (2 if heads == "in turn" else 0)
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.abs(two).max() > 0
        np.testing.assert_allclose(one, two, rtol=0, atol=2e-6 * np.abs(two).max())


def test_the_derivative_has_the_dtype_of_what_it_is_of():
    parts = segments(padded=False)
    q = jnp.ones((GROUP, KV_HEAD, ROW, HEAD, QUERY, DIM), jnp.bfloat16)

    def loss(q, keys):
        own = parts[1]._replace(keys=keys)
        return mix(BENDS["plain"], q, (parts[0], own)).astype(jnp.float32).sum()

    d_q, d_keys = jax.grad(loss, (0, 1))(q, parts[1].keys)
    assert (d_q.dtype, d_keys.dtype) == (jnp.bfloat16, jnp.float32)


@pytest.mark.parametrize(
    ("name", "platform", "meshed", "loops"),
    [
        ("plain", "cpu", False, 1),
        ("plain", "tpu", False, 0),
        ("plain", "cuda", False, 0),
        ("plain", "cpu", True, 0),
        ("distance", "cpu", False, 0),
    ],
)
def test_heads_take_turns_on_one_cpu_only(name, platform, meshed, loops, monkeypatch):
    """Not where a program for another device is lowered, on a mesh, or with bends of their own."""
    monkeypatch.setattr(implementation, "_MANY", 0)
    parts = segments(padded=False)
    if name != "distance":
        parts = tuple(part._replace(distance=None) for part in parts)
    q = jnp.ones((GROUP, KV_HEAD, ROW, HEAD, QUERY, DIM))
    with on_mesh() if meshed else contextlib.nullcontext():
        traced = jax.jit(lambda q: mix(BENDS[name], q, parts)).trace(q)
    lowered = traced.lower(lowering_platforms=(platform,))
    assert lowered.as_text().count("stablehlo.while") == loops


def on_mesh() -> contextlib.AbstractContextManager:
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)
