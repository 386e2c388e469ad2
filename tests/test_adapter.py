"""LoRA pairs: what they target, where they start, and what they add."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_models import CONFIGS, VOCAB, random_adapter, random_decoder

from pintern.adapters.adapter import (
    Adapter,
    LoraPair,
    init_lora,
    lora_scale,
    match_targets,
)
from pintern.errors import UserError
from pintern.models.layout import parameters_by_path
from pintern.models.linear import LayerAdapter, Linear
from pintern.models.merge import merge_lora

pytestmark = pytest.mark.usefixtures("full_precision")

TOKENS = jnp.arange(2 * 7).reshape(1, 2, 7) % VOCAB
POSITIONS = jnp.broadcast_to(jnp.arange(7), (1, 2, 7))
family = pytest.mark.parametrize("family", list(CONFIGS))


model = functools.cache(random_decoder)


@functools.partial(jax.jit, static_argnames="family")
def hidden(family: str, adapter: Adapter | None, key=None):
    return model(family)(TOKENS, POSITIONS, adapter=adapter, dropout_key=key)[0]


@family
@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (("all",), None),
        (("mlp.*",), {"mlp.gate", "mlp.up", "mlp.down"}),
        (("attention.output", "*.down"), {"attention.output", "mlp.down"}),
        (("attention.[kqv]*",), {f"attention.{x}" for x in ("query", "key", "value", "qkv")}),
    ],
)
def test_targets_by_pattern(family, patterns, expected):
    modules = model(family).linear_modules()
    chosen = match_targets(patterns, modules)
    assert chosen == [name for name in modules if expected is None or name in expected]
    lora = init_lora(jax.random.key(0), modules, 2, targets=patterns, rank=3)
    assert set(lora) == set(chosen)
    for name, pair in lora.items():
        width_in, width_out = modules[name]
        assert pair.a.shape == (2, width_in, 3)
        assert pair.b.shape == (2, 3, width_out)


@family
def test_an_unknown_target_lists_what_there_is(family):
    with pytest.raises(UserError, match=r"'q_proj'.*attention\.output, .*mlp\.up"):
        match_targets(("all", "q_proj"), model(family).linear_modules())


def test_a_rank_below_one_is_refused():
    with pytest.raises(UserError, match="rank is 0"):
        init_lora(jax.random.key(0), {"mlp.up": (4, 4)}, 1, rank=0)


def test_scales():
    assert lora_scale(16.0, 4) == 4
    assert lora_scale(16.0, 4, rank_stabilised=True) == 8


def test_a_starts_with_variance_one_third_of_its_width():
    pair = init_lora(jax.random.key(0), {"mlp.up": (400, 8)}, 4, rank=16)["mlp.up"]
    assert float(pair.a.var()) == pytest.approx(1 / (3 * 400), rel=0.05)
    assert not pair.b.any()


@family
def test_training_starts_at_the_base(family):
    base = hidden(family, None)
    np.testing.assert_array_equal(hidden(family, random_adapter(family, zero_b=True)), base)
    assert np.abs(hidden(family, random_adapter(family)) - base).max() > 0.01


@family
def test_gradients_are_a_tree_of_the_adapter_alone(family):
    adapter = random_adapter(family, zero_b=True)
    grads = jax.grad(lambda a: hidden(family, a)[..., 0].sum())(adapter)
    assert jax.tree.structure(grads) == jax.tree.structure(adapter)
    for pair in grads.lora.values():
        # With B at zero only B learns in the first step.
        assert not pair.a.any()
        assert pair.b.any()


@family
def test_a_merged_kernel_equals_the_adapter(family):
    adapter = random_adapter(family)
    base = random_decoder(family)
    merged, _ = merge_lora(base, adapter)(TOKENS, POSITIONS)
    np.testing.assert_allclose(merged, hidden(family, adapter), atol=2e-5)


def test_merging_leaves_the_base_as_it_is():
    base = random_decoder("gpt2")
    before = {path: np.array(array) for path, array in parameters_by_path(base).items()}
    merged = parameters_by_path(merge_lora(base, random_adapter("gpt2")))
    for path, array in parameters_by_path(base).items():
        np.testing.assert_array_equal(array, before[path], err_msg=path)
    assert {path for path in before if (merged[path] != before[path]).any()} == {
        f"blocks.{name}.kernel" for name in model("gpt2").linear_modules()
    }


def test_dropout_follows_its_key_and_is_off_without_one():
    adapter = random_adapter("llama", dropout=0.5)
    one, other = (hidden("llama", adapter, jax.random.key(i)) for i in (1, 2))
    np.testing.assert_array_equal(one, hidden("llama", adapter, jax.random.key(1)))
    assert np.abs(one - other).max() > 1e-3
    without = hidden("llama", random_adapter("llama"))
    np.testing.assert_array_equal(hidden("llama", adapter), without)
    assert np.abs(one - without).max() > 1e-3


def test_dropout_keeps_the_mean():
    """Over many masks the update's mean is the update without dropout."""
    linear = Linear("mlp.up", 8, 6, bias=False, rngs=nnx.Rngs(0))
    pair = LoraPair(
        *(jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(8, 2), (2, 6)]))
    )
    x = jax.random.normal(jax.random.key(5), (1, 8))
    keys = jax.random.split(jax.random.key(6), 4000)
    many = jax.vmap(lambda k: linear(x, LayerAdapter({"mlp.up": pair}, 1.0, 0.3, k)))(keys)
    exact = linear(x, LayerAdapter({"mlp.up": pair}))
    spread = many.std(0) / len(keys) ** 0.5
    assert (np.abs(many.mean(0) - exact) < 5 * spread).all()
