"""Rows behind a shared prefix give what each row gives alone, and padding changes nothing.

The reference is naive: one sequence [soft prompt; prefix; row] per row, nothing shared, no padding.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pintern.adapters.adapter import Adapter, LoraPair, init_lora
from pintern.models.load import init_model
from pintern.models.shared_prefix import (
    Batch,
    cross_entropy,
    positions_of,
    prefill,
    target_logits,
)

CONFIGS = {
    "llama": {
        "model_type": "llama",
        "vocab_size": 29,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": 29,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 32,
    },
}
# Real tokens of each group's prefix, and of its rows. Their sums fall on few lengths, because each
# length is one more compilation of the reference.
PREFIXES = (4, 2)
ROWS = ((3, 5), (5, 7))
TARGETS = 2
STEPS = 4

family = pytest.mark.parametrize("family", list(CONFIGS))
virtual = pytest.mark.parametrize("virtual", [0, 3], ids=["no soft prompt", "soft prompt"])


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


@functools.cache
def model(family: str):
    """A random decoder with weights large enough for attention to be far from uniform."""
    decoder = init_model(CONFIGS[family], seed=2).decoder
    graph, state = jax.tree.flatten(decoder)[1], jax.tree.leaves(decoder)
    return jax.tree.unflatten(graph, [8 * x if x.std() > 0 else x for x in state])


def make_adapter(family: str, virtual: int) -> Adapter:
    key = jax.random.key(7)
    lora = init_lora(key, model(family).linear_modules(), 2, rank=2)
    lora = {
        name: LoraPair(pair.a, 0.3 * jax.random.normal(jax.random.key(i), pair.b.shape))
        for i, (name, pair) in enumerate(lora.items())
    }
    soft = 0.3 * jax.random.normal(key, (virtual, 16)) if virtual else None
    return Adapter(lora=lora, soft_prompt=soft, scale=1.5)


@functools.cache
def tokens_and_targets():
    """Prefix, row and target tokens, and the slots (of the real row) that predict the targets."""
    rng = np.random.default_rng(5)
    prefixes = [rng.integers(0, 29, n) for n in PREFIXES]
    rows = [[rng.integers(0, 29, n) for n in lengths] for lengths in ROWS]
    slots = [[np.sort(rng.choice(n, TARGETS, replace=False)) for n in row] for row in ROWS]
    targets = [[rng.integers(0, 29, TARGETS) for _ in row] for row in ROWS]
    return prefixes, rows, slots, targets


@functools.partial(jax.jit, static_argnames="family")
def naive(family: str, adapter: Adapter, sequence, slots, targets):
    """Loss of one row run alone, its gradient, and the logits `[slot, vocab]` of its tokens."""
    decoder = model(family)

    def loss(adapter: Adapter):
        embedded = decoder.embed(sequence)
        if adapter.soft_prompt is not None:
            embedded = jnp.concatenate([adapter.soft_prompt, embedded])
        positions = jnp.arange(embedded.shape[0])
        hidden, _ = decoder(embedded[None, None], positions[None, None], adapter=adapter)
        logits = decoder.logits(hidden[0, 0, adapter.num_virtual_tokens :])
        return cross_entropy(logits[slots], targets, jnp.ones(targets.shape)), logits

    (value, logits), grads = jax.value_and_grad(loss, has_aux=True)(adapter)
    return value, grads, logits


@functools.cache
def naive_total(family: str, virtual: int):
    """Sum of every row's loss, and of its gradient."""
    prefixes, rows, slots, targets = tokens_and_targets()
    adapter = make_adapter(family, virtual)
    value, grads = 0.0, jax.tree.map(jnp.zeros_like, adapter)
    for g, prefix in enumerate(prefixes):
        for r, row in enumerate(rows[g]):
            sequence = np.concatenate([prefix, row])
            one, gradient, _ = naive(
                family, adapter, sequence, len(prefix) + slots[g][r], targets[g][r]
            )
            value += one
            grads = jax.tree.map(jnp.add, grads, gradient)
    return value, grads


@functools.partial(jax.jit, static_argnames="family")
def shared(family: str, adapter: Adapter, batch: Batch):
    """Loss and gradient of the whole batch behind its shared prefixes."""

    def loss(adapter: Adapter):
        logits = target_logits(model(family), batch, adapter=adapter)
        return cross_entropy(logits, batch.target_tokens, batch.target_weights)

    return jax.value_and_grad(loss)(adapter)


def padded(tokens: np.ndarray, room: int, rng, where: str) -> tuple[np.ndarray, np.ndarray]:
    """`tokens` spread over `room` slots, and which slots hold them. Padding holds random tokens."""
    start = {"right": 0, "left": room - len(tokens)}.get(where)
    if start is None:
        places = np.sort(rng.choice(room, len(tokens), replace=False))
    else:
        places = start + np.arange(len(tokens))
    out, valid = rng.integers(0, 29, room), np.zeros(room, np.int32)
    out[places], valid[places] = tokens, 1
    return out, valid


def make_batch(where: str, seed: int) -> Batch:
    """The sequences in one padded batch: room for 6 prefix and 8 row tokens, 3 rows, 4 targets."""
    rng = np.random.default_rng(seed)
    prefixes, rows, slots, targets = tokens_and_targets()
    prefix_tokens, prefix_valid = map(
        np.stack, zip(*(padded(p, 6, rng, where) for p in prefixes), strict=True)
    )
    shape = (2, 3)
    row_tokens = rng.integers(0, 29, (*shape, 8))
    row_valid = np.zeros((*shape, 8), np.int32)
    target_slots = rng.integers(0, 8, (*shape, 4))
    target_tokens = rng.integers(0, 29, (*shape, 4))
    weights = np.zeros((*shape, 4), np.float32)
    for g in range(2):
        # One row of the three stays padding altogether: the last, the first, or any.
        order = {"right": [0, 1], "left": [1, 2]}.get(where)
        order = np.sort(rng.choice(3, 2, replace=False)) if order is None else order
        for r, at in enumerate(order):
            row_tokens[g, at], row_valid[g, at] = padded(rows[g][r], 8, rng, where)
            kept = np.sort(rng.choice(4, TARGETS, replace=False))
            target_slots[g, at, kept] = np.flatnonzero(row_valid[g, at])[slots[g][r]]
            target_tokens[g, at, kept] = targets[g][r]
            weights[g, at, kept] = 1
    return Batch(
        *map(jnp.asarray, (prefix_tokens, prefix_valid, row_tokens, row_valid)),
        *map(jnp.asarray, (target_slots, target_tokens, weights)),
    )


def assert_close(found, expected) -> None:
    """Equal to 1e-5 of the largest entry, leaf by leaf."""
    for (path, one), two in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        error = float(jnp.abs(one - two).max() / jnp.abs(two).max())
        assert error < 1e-5, f"{jax.tree_util.keystr(path)} is off by {error:.1e}"


@family
@virtual
@pytest.mark.parametrize(
    ("where", "seed"),
    [("right", 0), ("left", 1), *(("anywhere", seed) for seed in range(2, 8))],
)
def test_loss_and_gradients_equal_the_naive_concatenation(family, virtual, where, seed):
    value, grads = shared(family, make_adapter(family, virtual), make_batch(where, seed))
    expected_value, expected_grads = naive_total(family, virtual)
    assert float(value) == pytest.approx(float(expected_value), rel=1e-5)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(expected_grads))
    assert_close(grads, expected_grads)


@functools.partial(jax.jit, static_argnames="family")
def greedy(family: str, adapter: Adapter, batch: Batch):
    """Continues every row by `STEPS` tokens through the prefix cache: `[group, row, step]`."""
    decoder = model(family)
    prefix, start = prefill(decoder, batch.prefix_tokens, batch.prefix_valid, adapter=adapter)
    positions = positions_of(batch.row_valid, start[:, None])
    hidden, cache = decoder(batch.row_tokens, positions, prefix, adapter=adapter)
    cache = cache.with_room(STEPS)
    # The last real token of a row may stand before padding.
    last = positions.argmax(-1)
    hidden = jnp.take_along_axis(hidden, last[..., None, None], axis=2)
    position = start[:, None] + batch.row_valid.sum(-1)
    picked = []
    for step in range(STEPS):
        picked.append(decoder.logits(hidden)[:, :, 0].argmax(-1))
        hidden, cache = decoder(
            picked[-1][..., None], (position + step)[..., None], cache, adapter=adapter
        )
    return jnp.stack(picked, axis=-1)


@family
@virtual
def test_greedy_through_the_prefix_cache_equals_the_naive_concatenation(family, virtual):
    prefixes, rows, _, _ = tokens_and_targets()
    adapter = make_adapter(family, virtual)
    for where, seed in [("right", 0), ("anywhere", 3)]:
        batch = make_batch(where, seed)
        continued = np.asarray(greedy(family, adapter, batch))
        for g, prefix in enumerate(prefixes):
            filled = np.flatnonzero(np.asarray(batch.row_valid[g]).any(-1))
            for row, answer in zip(rows[g], continued[g, filled], strict=True):
                # Each token must be the naive pass's choice after the ones before it.
                sequence = np.concatenate([prefix, row, answer])
                nothing = np.zeros(TARGETS, int)
                _, _, logits = naive(family, adapter, sequence, nothing, nothing)
                choices = np.asarray(logits.argmax(-1))[len(prefix) + len(row) - 1 : -1]
                np.testing.assert_array_equal(answer, choices)


@family
def test_a_prefix_may_be_empty(family):
    """Rows alone, no soft prompt: the plain model."""
    adapter = make_adapter(family, 0)
    batch = make_batch("right", 0)
    batch = batch.replace(
        prefix_tokens=jnp.zeros((2, 0), int), prefix_valid=jnp.zeros((2, 0), jnp.int32)
    )
    value, grads = shared(family, adapter, batch)
    # An invalid prefix token must be as good as none.
    hidden_prefix = make_batch("right", 0)
    hidden_prefix = hidden_prefix.replace(prefix_valid=jnp.zeros_like(hidden_prefix.prefix_valid))
    expected_value, expected_grads = shared(family, adapter, hidden_prefix)
    assert float(value) == pytest.approx(float(expected_value), rel=1e-5)
    assert_close(grads, expected_grads)


@family
def test_rows_see_their_own_prefix_only(family):
    """Another prefix in one group leaves the other group's logits as they are."""
    batch = make_batch("right", 0)
    logits = target_logits(model(family), batch)
    other = batch.replace(prefix_tokens=batch.prefix_tokens.at[0].add(1) % 29)
    changed = target_logits(model(family), other)
    np.testing.assert_array_equal(logits[1], changed[1])
    assert np.abs(logits[0, :2] - changed[0, :2]).max() > 1e-3


def test_positions_count_real_tokens():
    valid = jnp.array([[0, 1, 1, 0, 1], [0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(
        positions_of(valid, jnp.array([10, 3])), [[-1, 10, 11, -1, 12], [-1] * 5]
    )
