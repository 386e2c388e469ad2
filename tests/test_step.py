"""One optimizer step: what it learns from, what it leaves alone, how fast it goes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from pintern.assemble import new_adapter, split_decoder
from pintern.config import default_config
from pintern.curriculum import Level
from pintern.models.shared_prefix import prefill
from pintern.prompts.task import Example
from pintern.training.batches import Shape, make_batch
from pintern.training.data import TrainingData
from pintern.training.step import (
    Teacher,
    TrainBatch,
    TrainState,
    kl_divergence,
    learning_rate,
    loss_options,
    make_optimizer,
    make_step,
    reset_moments,
)

pytestmark = pytest.mark.usefixtures("full_precision")

FULL = Level(1.0, 1)
ANSWERED = [Example(f"Where is the {c} bracket?", "shelf 1", c) for c in ("red", "blue", "grey")]


@functools.cache
def data(accumulate: int) -> TrainingData:
    return TrainingData(
        tiny.parts().prompts,
        ANSWERED,
        batch_rows=4,
        accumulate=accumulate,
        seed=0,
        teacher_shots=FULL.shots,
    )


@functools.cache
def split():
    return split_decoder(tiny.parts().checkpoint)


def teacher(adapter=None):
    tokens = jnp.asarray(tiny.parts().prompts.prefix(1.0))[None]
    decoder = tiny.parts().checkpoint.decoder
    prefix = jax.jit(lambda x: prefill(decoder, x, jnp.ones_like(x), adapter=adapter))(tokens)
    return Teacher(adapter, prefix)


@functools.cache
def jitted():
    """Plain gradient descent at rate 1: what the adapter loses is its gradient."""
    return jax.jit(make_step(split()[0], optax.sgd(1.0), distill_weight=0.5, temperature=2.0))


def trained_adapter():
    """B is not zero, so that A has a gradient as well."""
    keys = iter(jax.random.split(jax.random.key(5), 99))
    return jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), new_adapter(tiny.parts())
    )


def step(adapter, batch, taught_by=None):
    state = TrainState(adapter, optax.sgd(1.0).init(adapter))
    taught_by = taught_by or teacher()
    after, metrics = jitted()(state, split()[1], batch, taught_by, jax.random.key(0))
    return jax.tree.map(jnp.subtract, adapter, after.adapter), metrics


def assert_close(found, expected):
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.abs(two).max() > 0
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-5 * np.abs(two).max())


def test_accumulation_changes_memory_and_nothing_else():
    whole, parts = (data(n).batch(0, FULL)[1] for n in (1, 2))
    assert parts.labelled.shape == (2, 1, 2)
    np.testing.assert_array_equal(whole.labelled.ravel(), parts.labelled.ravel())
    one, two = (step(trained_adapter(), batch) for batch in (whole, parts))
    assert_close(two[0], one[0])
    for name in ("loss", "kl", "grad_norm"):
        assert float(two[1][name]) == pytest.approx(float(one[1][name]), rel=1e-5)


@pytest.mark.parametrize("packed", [2, 4])
def test_packs_change_padding_and_nothing_else(packed):
    """A row's own weight in the loss goes with it, by label and by the teacher's confidence."""
    rows = data(1).rows(FULL.shots)
    chosen = [rows[i] for i in (0, len(rows) - 1, 3, len(rows) - 2)]
    labelled = jnp.array([[[1.0, 0.0, 1.0, 0.0]]])
    outcomes = []
    for each in (1, packed):
        shape = Shape(88, 64 * each, 96, each)
        prefixes = tiny.parts().prompts.prefix(1.0), ()
        student, taught = (
            make_batch(prefix, chosen, shape._replace(prefix=88 if prefix else 0), lane_rows=4)
            for prefix in prefixes
        )
        batch = jax.tree.map(lambda x: x[None], TrainBatch(student, labelled[0], taught))
        state = TrainState(trained_adapter(), optax.sgd(1.0).init(trained_adapter()))
        options = {"by_confidence": True, "distill_weight": 0.5, "prompt_loss_weight": 0.1}
        run = jax.jit(make_step(split()[0], optax.sgd(1.0), **options))
        outcomes.append(run(state, split()[1], batch, teacher(), jax.random.key(0)))
    assert_close(outcomes[1][0].adapter, outcomes[0][0].adapter)
    for name, value in outcomes[0][1].items():
        assert float(outcomes[1][1][name]) == pytest.approx(float(value), rel=1e-5), name


def test_a_fresh_adapter_behind_the_teachers_prompt_is_the_teacher():
    _, metrics = step(new_adapter(tiny.parts()), data(1).batch(0, FULL)[1])
    assert abs(float(metrics["kl"])) < 1e-6
    _, metrics = step(trained_adapter(), data(1).batch(0, FULL)[1])
    assert float(metrics["kl"]) > 1e-3


def test_a_teacher_with_an_adapter_is_followed_with_it_on():
    adapter = trained_adapter()
    _, metrics = step(adapter, data(1).batch(0, FULL)[1], teacher(adapter))
    assert abs(float(metrics["kl"])) < 1e-6
    _, metrics = step(new_adapter(tiny.parts()), data(1).batch(0, FULL)[1], teacher(adapter))
    assert float(metrics["kl"]) > 1e-3


def test_what_the_teacher_wrote_is_no_label():
    """With other target tokens in an unlabelled row, loss and gradient stay the same."""
    batch = data(1).batch(0, FULL)[1]
    labelled = np.array([[[1, 0, 1, 0]]], np.float32)
    batch = batch.replace(labelled=labelled)
    targets = batch.student.target_tokens
    at_targets = np.take_along_axis(labelled[0], batch.student.target_rows[0, :, 0], axis=1)
    outcomes = []
    for changed in (targets, np.where(at_targets == 0, (targets + 7) % 300, targets)):
        student = batch.student.replace(target_tokens=changed)
        outcomes.append(step(trained_adapter(), batch.replace(student=student)))
    assert_close(outcomes[1][0], outcomes[0][0])
    assert float(outcomes[1][1]["loss"]) == pytest.approx(float(outcomes[0][1]["loss"]), rel=1e-6)
    everything = batch.replace(labelled=np.ones_like(labelled))
    assert float(step(trained_adapter(), everything)[1]["loss"]) != pytest.approx(
        float(outcomes[0][1]["loss"]), rel=1e-3
    )


def test_labelled_pairs_and_answers_are_told_apart():
    found = data(1)
    pool = len(tiny.parts().prompts.pool)
    for number in range(16):
        labelled = found.batch(number, FULL)[1].labelled.ravel()
        expected = [float(i < pool) for i in found.indices(number)]
        assert labelled.tolist() == expected
    assert len(found) == pool + len(ANSWERED)


def test_only_the_adapter_has_gradients_and_optimizer_state():
    config = tiny.config().train
    adapter = new_adapter(tiny.parts())
    optimizer = make_optimizer(config)
    state = TrainState(adapter, optimizer.init(adapter))
    after, metrics = jax.eval_shape(
        make_step(split()[0], optimizer),
        state,
        split()[1],
        data(1).batch(0, FULL)[1].replace(teacher=None),
        None,
        jax.random.key(0),
    )
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert set(metrics) == {"loss", "grad_norm"}
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(adapter))
    moments = sorted(leaf.size for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim)
    assert moments == sorted(2 * sizes)


def test_reset_moments_are_fresh_and_the_schedule_goes_on():
    config = tiny.config().train
    optimizer = make_optimizer(config)
    adapter = trained_adapter()
    fresh = state = optimizer.init(adapter)
    for _ in range(3):
        _, state = optimizer.update(adapter, state, adapter)
    reset = reset_moments(state)
    assert jax.tree.structure(reset) == jax.tree.structure(state)
    again, _ = optimizer.update(adapter, reset, adapter)
    first, _ = optimizer.update(adapter, fresh, adapter)
    rate = learning_rate(config)
    scale = float(rate(3) / rate(0))
    assert scale != 1
    # Adam's first step over again, at the fourth step's rate.
    assert_close(again, jax.tree.map(lambda x: scale * x, first))


def test_the_configs_loss_reaches_the_step():
    config = tiny.config(distill__weight=0.5, distill__top_k=3, distill__labelled=False)
    config.train.update(ce_weight=0.25, prompt_loss_weight=0.125, balance_weight=0.0)
    assert loss_options(config) == {
        "distill_weight": 0.5,
        "temperature": 1.0,
        "by_confidence": True,
        "top_k": 3,
        "distill_labelled": False,
        "ce_weight": 0.25,
        "prompt_loss_weight": 0.125,
        "balance_weight": 0.0,
    }


def descend(**options):
    """Gradient and metrics of one step with these options, one row of four being the teacher's."""
    batch = data(1).batch(0, FULL)[1].replace(labelled=np.array([[[1, 0, 1, 1]]], np.float32))
    adapter = trained_adapter()
    state = TrainState(adapter, optax.sgd(1.0).init(adapter))
    program = jax.jit(make_step(split()[0], optax.sgd(1.0), **options))
    after, metrics = program(state, split()[1], batch, teacher(), jax.random.key(0))
    return jax.tree.map(jnp.subtract, adapter, after.adapter), metrics


def test_the_loss_is_the_weighted_sum_of_its_parts():
    """Gradients add up: cross-entropy, KL on gold completions, KL on the teacher's answers."""
    both = descend(distill_weight=0.5)[0]
    answers = descend(distill_weight=1.0, ce_weight=0.0, distill_labelled=False)
    kl = descend(distill_weight=1.0, ce_weight=0.0)
    ce = descend()
    assert 0 < float(answers[1]["kl"]) < float(kl[1]["kl"])
    assert_close(jax.tree.map(lambda a, b: a + 0.5 * b, ce[0], kl[0]), both)
    halved = descend(distill_weight=0.5, ce_weight=0.5)[0]
    assert_close(jax.tree.map(lambda a, b: 0.5 * (a + b), ce[0], kl[0]), halved)
    few = descend(distill_weight=1.0, ce_weight=0.0, top_k=2)
    assert 0 < float(few[1]["kl"]) < float(kl[1]["kl"])


def test_without_labels_the_order_is_over_the_answers_alone():
    alone = TrainingData(
        tiny.parts().prompts,
        ANSWERED,
        batch_rows=4,
        accumulate=1,
        seed=0,
        teacher_shots=FULL.shots,
        labelled=False,
    )
    assert len(alone) == len(ANSWERED)
    seen = [i for number in range(3) for i in alone.indices(number)]
    pool = len(tiny.parts().prompts.pool)
    assert set(seen) == {pool, pool + 1, pool + 2}
    assert not alone.batch(0, FULL)[1].labelled.any()
    shapes = {shape for shape, _ in alone.programs(FULL)}
    assert {alone.batch(number, FULL)[0] for number in range(16)} <= shapes


def schedule(**changes):
    config = default_config().train
    config.steps, config.learning_rate, config.warmup = 100, 2.0, 0.1
    config.update(changes)
    rate = learning_rate(config)
    return np.array([float(rate(step)) for step in range(config.steps)])


def test_warm_up_rises_evenly_from_its_first_share():
    np.testing.assert_allclose(schedule()[:10], 2.0 * np.arange(1, 11) / 10, rtol=1e-5)


@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_the_rate_falls_from_the_peak_to_its_final_share(decay):
    rates = schedule(decay=decay, final_rate=0.25)
    assert rates[10] == pytest.approx(2.0)
    assert (np.diff(rates[10:]) < 0).all()
    assert 0.5 < rates[-1] < 0.55


@pytest.mark.parametrize("warmup", [0.0, 0.01, 1.0])
def test_any_warm_up_reaches_the_peak_and_is_never_zero(warmup):
    rates = schedule(decay="constant", warmup=warmup)
    assert rates.max() == pytest.approx(2.0)
    assert rates[-1] == pytest.approx(2.0)
    assert rates.min() > 0


def test_kl_is_zero_for_equal_logits_and_scales_with_its_weights():
    rng = np.random.default_rng(0)
    p, q = (jnp.asarray(rng.normal(size=(3, 7)), jnp.float32) for _ in range(2))
    weights = jnp.array([1.0, 1.0, 0.0])
    assert float(kl_divergence(p, p + 3.0, weights, 1.0)) == pytest.approx(0, abs=1e-6)
    whole = float(kl_divergence(p, q, weights, 2.0))
    assert whole > 0
    assert float(kl_divergence(p, q, 2 * weights, 2.0)) == pytest.approx(2 * whole, rel=1e-5)
    rows = [float(kl_divergence(p[i : i + 1], q[i : i + 1], weights[:1], 2.0)) for i in (0, 1)]
    assert sum(rows) == pytest.approx(whole, rel=1e-5)
