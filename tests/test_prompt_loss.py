"""Prompt tokens in the loss: a prefix that rows share counts as in each row's concatenation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from test_shared_prefix import (
    PLACES,
    PREFIXES,
    ROWS,
    assert_close,
    jit,
    make_batch,
    model,
    naive_logits,
    tokens_and_targets,
)
from tiny_models import CONFIGS, VOCAB, random_adapter

from pintern.models.prompt_loss import prompt_nats
from pintern.models.shared_prefix import Batch, cross_entropy, read_batch
from pintern.training.step import TrainBatch, TrainState, make_step

pytestmark = pytest.mark.usefixtures("full_precision")

WEIGHT = 0.3
families = pytest.mark.parametrize(
    ("family", "virtual"), [(name, virtual) for name in CONFIGS for virtual in (0, 3)]
)


def weighted(where: str, seed: int) -> tuple[Batch, jax.Array]:
    """The batch of the shared prefix's tests, and what its rows count: rows of padding nothing."""
    batch = make_batch(where, seed)
    group, pack, _ = batch.pack_rows.shape
    counts = np.zeros((group, pack, batch.packed), np.float32)
    for g, rows in enumerate(np.asarray(batch.pack_rows)):
        there = rows[:, None] == np.arange(batch.packed)[:, None] + 1
        counts[g][there.any(-1)] = (1.0, 0.5)
    counts = counts.reshape(group, -1)
    return batch, jnp.asarray(counts)


@jit
def shared(family, adapter, batch, counts):
    def loss(adapter):
        decoder = model(family)
        return prompt_nats(
            decoder, batch, read_batch(decoder, batch, adapter=adapter, whole=True), counts
        )

    return jax.value_and_grad(loss, has_aux=True)(adapter)


@jit
def naive(family, adapter, sequence, count):
    """Every token of `sequence` up to `count`, predicted from what stands before it."""

    def loss(adapter):
        embedded = model(family).embed(sequence)
        if adapter.soft_prompt is None:
            logits = naive_logits(family, adapter, sequence)[:-1]
            targets, real = sequence[1:], jnp.arange(1, len(sequence)) < count
        else:
            # The last learned vector predicts the first token: logits from there on.
            embedded = jnp.concatenate([adapter.soft_prompt, embedded])
            positions = jnp.arange(len(embedded))
            hidden, _ = model(family)(embedded[None, None], positions[None, None], adapter=adapter)
            logits = model(family).logits(hidden[0, 0, adapter.num_virtual_tokens - 1 : -1])
            targets, real = sequence, jnp.arange(len(sequence)) < count
        return cross_entropy(logits, targets, real.astype(jnp.float32)), real.sum()

    return jax.value_and_grad(loss, has_aux=True)(adapter)


@functools.cache
def expected(family: str, virtual: int):
    """The naive sum over rows, each by its weight; its tokens; its gradient, leaf by leaf."""
    prefixes, rows, slots, _ = tokens_and_targets()
    adapter = random_adapter(family, virtual=virtual)
    total, tokens, grads = 0.0, 0.0, [0.0] * len(jax.tree.leaves(adapter))
    for g, prefix in enumerate(prefixes):
        for r, row in enumerate(rows[g]):
            prompt = len(prefix) + slots[g][r].min() + 1
            sequence = np.concatenate([prefix, row])
            (value, count), gradient = naive(family, adapter, sequence, prompt)
            weight = (1.0, 0.5)[r]
            total, tokens = total + weight * value, tokens + weight * count
            grads = [
                a + weight * np.asarray(b)
                for a, b in zip(grads, jax.tree.leaves(gradient), strict=True)
            ]
    return total, tokens, grads


@families
@pytest.mark.parametrize(("where", "seed"), [("lanes", 0), *PLACES])
def test_it_equals_the_plain_concatenation_of_every_row(family, virtual, where, seed):
    adapter = random_adapter(family, virtual=virtual)
    (value, tokens), grads = shared(family, adapter, *weighted(where, seed))
    wanted, count, wanted_grads = expected(family, virtual)
    assert float(tokens) == pytest.approx(float(count))
    assert float(value) == pytest.approx(float(wanted), rel=1e-5)
    assert_close(grads, wanted_grads, 1e-5)


def test_without_prefix_and_soft_prompt_the_rows_first_token_is_predicted_by_nothing():
    batch, counts = weighted("lanes", 0)
    counts = (counts > 0).astype(jnp.float32)
    none = batch.replace(
        prefix_tokens=batch.prefix_tokens[:, :0], prefix_valid=batch.prefix_valid[:, :0]
    )
    padding = batch.replace(prefix_valid=jnp.zeros_like(batch.prefix_valid))
    adapter = random_adapter("llama")
    (one, tokens), _ = shared("llama", adapter, none, counts)
    (two, same), _ = shared("llama", adapter, padding, counts)
    _, _, slots, _ = tokens_and_targets()
    assert float(tokens) == float(same) == sum(s.min() for group in slots for s in group)
    assert float(one) == pytest.approx(float(two), rel=1e-5)
    (_, with_prefix), _ = shared("llama", adapter, batch, counts)
    # The prefix but its first token, and the row's own first one, once for each row.
    expected = sum(len(rows) * prefix for prefix, rows in zip(PREFIXES, ROWS, strict=True))
    assert float(with_prefix) == float(tokens) + expected


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_descends_the_weighted_mean_over_concatenations(accumulate):
    """w on prompt tokens, 1 on targets, divided by the weights' sum; unlabelled rows by targets."""
    family, virtual = "llama", 3
    graph, base = nnx.split(model(family))
    adapter = random_adapter(family, virtual=virtual)
    batch = weighted("lanes", 0)[0]
    labelled = np.array([[1, 0, 0], [1, 1, 0]], np.float32)  # the third row is padding
    batches = jax.tree.map(lambda x: x[None], TrainBatch(student=batch, labelled=labelled))
    if accumulate == 2:  # group by group
        batches = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), batches)
    step = jax.jit(make_step(graph, optax.sgd(1.0), prompt_loss_weight=WEIGHT))
    state = TrainState(adapter, optax.sgd(1.0).init(adapter))
    after, metrics = step(state, base, batches, None, jax.random.key(0))
    found = jax.tree.map(jnp.subtract, adapter, after.adapter)

    prefixes, rows, slots, targets = tokens_and_targets()

    def loss(adapter):
        nats, weights = 0.0, 0.0
        for g, prefix in enumerate(prefixes):
            for r, row in enumerate(rows[g]):
                weights += len(targets[g][r])
                if not labelled[g, r]:
                    continue
                sequence = jnp.asarray(np.concatenate([prefix, row]))
                embedded = jnp.concatenate([adapter.soft_prompt, model(family).embed(sequence)])
                positions = jnp.arange(len(embedded))
                hidden, _ = model(family)(
                    embedded[None, None], positions[None, None], adapter=adapter
                )
                logits = model(family).logits(hidden[0, 0])
                at = virtual + len(prefix) + slots[g][r]
                nats += cross_entropy(logits[at], jnp.asarray(targets[g][r]), jnp.ones(len(at)))
                prompt = sequence[: len(prefix) + slots[g][r].min() + 1]
                before = logits[virtual - 1 : virtual - 1 + len(prompt)]
                nats += WEIGHT * cross_entropy(before, prompt, jnp.ones(len(prompt)))
                weights += WEIGHT * len(prompt)
        return nats / weights

    assert_close(found, jax.tree.leaves(jax.jit(jax.grad(loss))(adapter)), 1e-5)
    assert float(metrics["prompt_loss"]) == pytest.approx(np.log(VOCAB), rel=0.5)


def test_without_weight_it_is_not_there():
    graph, base = nnx.split(model("llama"))
    adapter = random_adapter("llama")
    batch = TrainBatch(student=make_batch("lanes", 0), labelled=jnp.ones((2, 3)))
    batches = jax.tree.map(lambda x: x[None], batch)
    state = TrainState(adapter, optax.sgd(1.0).init(adapter))
    _, metrics = jax.eval_shape(
        make_step(graph, optax.sgd(1.0)), state, base, batches, None, jax.random.key(0)
    )
    assert set(metrics) == {"loss", "grad_norm"}
