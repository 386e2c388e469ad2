"""Mixture of experts: exact, dropless, and counted for a load-balancing loss."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tiny_models import EVERY_FAMILY, VOCAB, random_decoder

from pintern.adapters.adapter import Adapter, init_lora
from pintern.models.experts import Experts, balance_loss
from pintern.models.families import FAMILIES, decoder_config
from pintern.models.shared_prefix import Batch, read_batch
from pintern.training.step import TrainBatch, TrainState, make_step

CONFIG = decoder_config(FAMILIES["mixtral"], EVERY_FAMILY["mixtral"])


@functools.cache
def experts() -> Experts:
    """One layer, with weights large enough for an uneven router."""
    layer = Experts(CONFIG, rngs=nnx.Rngs(3))
    nnx.update(layer, jax.tree.map(lambda x: 20 * x, nnx.state(layer)))
    return layer


def one_by_one(x: np.ndarray) -> np.ndarray:
    """Each token through its experts in turn, in NumPy."""
    layer = experts()
    router, gate, up, down = (
        np.asarray(w[...]) for w in (layer.router, layer.gate, layer.up, layer.down)
    )
    out = np.zeros_like(x)
    for i, token in enumerate(x):
        scores = np.exp(token @ router)
        best = np.argsort(-scores)[: CONFIG.experts_per_token]
        for e in best:
            h = token @ gate[e]
            inner = h / (1 + np.exp(-h)) * (token @ up[e])
            out[i] += scores[e] / scores[best].sum() * (inner @ down[e])
    return out


def test_each_token_meets_its_own_experts():
    x = np.random.default_rng(0).normal(size=(23, CONFIG.model_dim)).astype(np.float32)
    found, routed = experts()(jnp.asarray(x), jnp.ones(23, bool))
    np.testing.assert_allclose(found, one_by_one(x), rtol=1e-4, atol=1e-4)
    assert routed.sent.sum() == 23 * CONFIG.experts_per_token
    assert routed.probability.sum() == pytest.approx(23, rel=1e-5)


def test_no_token_is_dropped_when_all_want_one_expert():
    x = np.tile(np.random.default_rng(1).normal(size=CONFIG.model_dim), (17, 1)).astype(np.float32)
    found, routed = experts()(jnp.asarray(x), jnp.ones(17, bool))
    np.testing.assert_allclose(found, one_by_one(x), rtol=1e-4, atol=1e-4)
    assert sorted(routed.sent.tolist()) == [0, 0, 17, 17]


def test_a_population_of_adapters_may_share_the_experts():
    """Under vmap, with the experts' own weights unbatched, values and gradients are those alone."""
    x = jnp.asarray(np.random.default_rng(2).normal(size=(3, 5, CONFIG.model_dim)), jnp.float32)
    real = jnp.ones(5, bool)

    def total(x):
        return jnp.sin(experts()(x, real)[0]).sum()

    alone_of = jax.value_and_grad(total)
    together = jax.jit(jax.vmap(alone_of))(x)
    for i, alone in enumerate(map(jax.jit(alone_of), x)):
        np.testing.assert_allclose(together[0][i], alone[0], rtol=1e-5)
        np.testing.assert_allclose(together[1][i], alone[1], rtol=1e-4, atol=1e-5)


def test_routing_counts_real_tokens_once():
    """A prefix once a group, each row once, padding never."""
    rng = np.random.default_rng(5)
    batch = Batch(
        prefix_tokens=jnp.asarray(rng.integers(0, VOCAB, (2, 5))),
        prefix_valid=jnp.asarray([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]),
        pack_tokens=jnp.asarray(rng.integers(0, VOCAB, (2, 3, 4))),
        pack_rows=jnp.asarray([[[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]] * 2),
        target_rows=jnp.zeros((2, 3, 1), jnp.int32),
        target_slots=jnp.zeros((2, 3, 1), jnp.int32),
        target_tokens=jnp.zeros((2, 3, 1), jnp.int32),
        target_weights=jnp.ones((2, 3, 1)),
    )
    routed = jax.jit(lambda batch: read_batch(random_decoder("mixtral"), batch).routed)(batch)
    np.testing.assert_array_equal(routed.tokens, [16, 16])
    np.testing.assert_array_equal(routed.sent.sum(-1), [32, 32])
    even = dataclasses.replace(
        routed, sent=jnp.full((2, 4), 8.0), probability=jnp.full((2, 4), 4.0)
    )
    assert balance_loss(even) == pytest.approx(CONFIG.experts_per_token)
    assert balance_loss(routed) > balance_loss(even)


def test_training_on_the_balance_loss_alone_evens_the_experts_out():
    """LoRA moves what the routers see; the loss is nowhere but in the steps' metrics."""
    decoder = random_decoder("mixtral")
    graph, base = nnx.split(decoder)
    rows = np.random.default_rng(2).integers(0, VOCAB, (1, 1, 4, 12))
    ones = np.ones_like(rows)
    student = Batch(
        prefix_tokens=rows[:, :, 0],
        prefix_valid=ones[:, :, 0],
        pack_tokens=rows,
        pack_rows=ones,
        target_rows=np.zeros_like(ones[..., :2]),
        target_slots=ones[..., :2],
        target_tokens=rows[..., :2],
        target_weights=np.ones((1, 1, 4, 2), np.float32),
    )
    batch = TrainBatch(student, labelled=np.zeros((1, 1, 4), np.float32))
    adapter = Adapter(
        init_lora(jax.random.key(0), decoder.linear_modules(), CONFIG.num_layers, rank=4), None
    )
    optimizer = optax.adam(3e-2)
    step = jax.jit(make_step(graph, optimizer, balance_weight=1.0))
    state, seen = TrainState(adapter, optimizer.init(adapter)), []
    for _ in range(25):
        state, metrics = step(state, base, batch, None, jax.random.key(0))
        seen.append(float(metrics["balance"]))
        assert metrics["loss"] == 0
    assert CONFIG.experts_per_token <= seen[-1] < seen[0] - 0.05


def test_two_micro_batches_have_the_mean_of_their_balance_losses():
    decoder = random_decoder("mixtral")
    graph, base = nnx.split(decoder)
    rows = np.random.default_rng(3).integers(0, VOCAB, (2, 1, 2, 9))
    ones = np.ones_like(rows)
    student = Batch(
        prefix_tokens=rows[:, :, 0, :0],
        prefix_valid=ones[:, :, 0, :0],
        pack_tokens=rows,
        pack_rows=ones,
        target_rows=np.zeros_like(ones[..., :1]),
        target_slots=ones[..., :1],
        target_tokens=rows[..., :1],
        target_weights=np.ones((2, 1, 2, 1), np.float32),
    )
    batch = TrainBatch(student, labelled=np.zeros((2, 1, 2), np.float32))
    adapter = Adapter(
        init_lora(jax.random.key(0), decoder.linear_modules(), CONFIG.num_layers, rank=4), None
    )
    optimizer = optax.sgd(0.0)
    step = jax.jit(make_step(graph, optimizer, balance_weight=1.0))
    state = TrainState(adapter, optimizer.init(adapter))

    def balance(batch):
        return float(step(state, base, batch, None, jax.random.key(0))[1]["balance"])

    halves = [balance(jax.tree.map(lambda x, i=i: x[i : i + 1], batch)) for i in (0, 1)]
    assert halves[0] != pytest.approx(halves[1], rel=1e-3)
    assert balance(batch) == pytest.approx(np.mean(halves), rel=1e-5)
