"""Rows behind a shared prefix give what each row gives alone, and padding changes nothing.

The reference is naive: one sequence [soft prompt; prefix; row] per row, nothing shared, no padding.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import CONFIGS, EVERY_FAMILY, VOCAB, random_adapter, random_decoder

from pintern.adapters.adapter import Adapter
from pintern.models.decoder import Cache
from pintern.models.shared_prefix import (
    Batch,
    cross_entropy,
    positions_of,
    prefill,
    read_batch,
    target_logits,
)

pytestmark = pytest.mark.usefixtures("full_precision")

# Real tokens of each group's prefix, and of its rows. Their sums fall on few lengths, because each
# length is one more compilation of the reference.
PREFIXES = (4, 2)
ROWS = ((3, 5), (5, 7))
TARGETS = 2
STEPS = 4

PLACES = [
    *(("right", 0), ("left", 1), ("packed", 8)),
    *(("anywhere", seed) for seed in range(2, 8)),
]
# Of a batch's arrays, what a row is read by; targets of another shape would be another program.
READ = ("prefix_tokens", "prefix_valid", "pack_tokens", "pack_rows")

family = pytest.mark.parametrize("family", list(EVERY_FAMILY))
# Two families with and without a soft prompt; the others with one, which is the harder case.
with_virtual = pytest.mark.parametrize(
    ("family", "virtual"),
    [(name, n) for name in EVERY_FAMILY for n in (0, 3) if n or name in CONFIGS],
)
# Most of the time here goes into compiling programs that run a few times.
jit = functools.partial(
    jax.jit, static_argnames="family", compiler_options={"xla_backend_optimization_level": 0}
)


model = functools.cache(random_decoder)


@functools.cache
def tokens_and_targets():
    """Prefix, row and target tokens, and the slots (of the real row) that predict the targets."""
    rng = np.random.default_rng(5)
    prefixes = [rng.integers(0, VOCAB, n) for n in PREFIXES]
    rows = [[rng.integers(0, VOCAB, n) for n in lengths] for lengths in ROWS]
    slots = [[np.sort(rng.choice(n, TARGETS, replace=False)) for n in row] for row in ROWS]
    targets = [[rng.integers(0, VOCAB, TARGETS) for _ in row] for row in ROWS]
    return prefixes, rows, slots, targets


def naive_logits(family: str, adapter: Adapter, sequence):
    """Logits `[slot, vocab]` of one sequence run alone; the soft prompt before it has none."""
    decoder = model(family)
    embedded = decoder.embed(sequence)
    if adapter.soft_prompt is not None:
        embedded = jnp.concatenate([adapter.soft_prompt, embedded])
    positions = jnp.arange(embedded.shape[0])
    hidden, _ = decoder(embedded[None, None], positions[None, None], adapter=adapter)
    return decoder.logits(hidden[0, 0, adapter.num_virtual_tokens :])


@jit
def naive(family: str, adapter: Adapter, sequence, slots, targets):
    """Loss of one sequence run alone, and its gradient."""

    def loss(adapter: Adapter):
        logits = naive_logits(family, adapter, sequence)[slots]
        return cross_entropy(logits, targets, jnp.ones(targets.shape))

    return jax.value_and_grad(loss)(adapter)


@functools.cache
def naive_total(family: str, virtual: int):
    """Sum of every row's loss, and of its gradient, leaf by leaf."""
    prefixes, rows, slots, targets = tokens_and_targets()
    adapter = random_adapter(family, virtual=virtual)
    value, grads = 0.0, [0.0] * len(jax.tree.leaves(adapter))
    for g, prefix in enumerate(prefixes):
        for r, row in enumerate(rows[g]):
            sequence = np.concatenate([prefix, row])
            one, gradient = naive(
                family, adapter, sequence, len(prefix) + slots[g][r], targets[g][r]
            )
            value += one
            grads = [np.add(a, b) for a, b in zip(grads, jax.tree.leaves(gradient), strict=True)]
    return value, grads


@jit
def shared(family: str, adapter: Adapter, batch: Batch):
    """Loss and gradient of the whole batch behind its shared prefixes."""

    def loss(adapter: Adapter):
        logits = target_logits(model(family), batch, adapter=adapter)
        return cross_entropy(logits, batch.target_tokens, batch.target_weights)

    return jax.value_and_grad(loss)(adapter)


def padded(tokens: np.ndarray, room: int, rng, where: str) -> tuple[np.ndarray, np.ndarray]:
    """`tokens` spread over `room` slots, and which slots hold them. Padding holds random tokens."""
    start = {"right": 0, "lanes": 0, "left": room - len(tokens)}.get(where)
    if start is None:
        places = np.sort(rng.choice(room, len(tokens), replace=False))
    else:
        places = start + np.arange(len(tokens))
    out, valid = rng.integers(0, VOCAB, room), np.zeros(room, np.int32)
    out[places], valid[places] = tokens, 1
    return out, valid


def make_batch(where: str, seed: int) -> Batch:
    """The sequences in one padded batch: room for 6 prefix and 8 row tokens, 3 rows, 4 targets.

    All rows are one lane, whose targets stand in any order; `lanes` is padding on the right with a
    lane to each row. `packed` is three rows to a pack of 16 slots, two packs to the lane.
    """
    if where == "packed":
        return packed_batch(seed)
    rng = np.random.default_rng(seed)
    prefixes, rows, slots, targets = tokens_and_targets()
    prefix_tokens, prefix_valid = map(
        np.stack, zip(*(padded(p, 6, rng, where) for p in prefixes), strict=True)
    )
    shape = (2, 3)
    pack_tokens = rng.integers(0, VOCAB, (*shape, 8))
    pack_rows = np.zeros((*shape, 8), np.int32)
    target_slots = rng.integers(0, 8, (*shape, 4))
    target_tokens = rng.integers(0, VOCAB, (*shape, 4))
    weights = np.zeros((*shape, 4), np.float32)
    for g in range(2):
        # One row of the three stays padding altogether: the last, the first, or any.
        order = {"right": [0, 1], "lanes": [0, 1], "left": [1, 2]}.get(where)
        order = np.sort(rng.choice(3, 2, replace=False)) if order is None else order
        for r, at in enumerate(order):
            pack_tokens[g, at], pack_rows[g, at] = padded(rows[g][r], 8, rng, where)
            kept = np.sort(rng.choice(4, TARGETS, replace=False))
            target_slots[g, at, kept] = np.flatnonzero(pack_rows[g, at])[slots[g][r]]
            target_tokens[g, at, kept] = targets[g][r]
            weights[g, at, kept] = 1
    targets = np.zeros_like(target_slots), target_slots, target_tokens, weights
    if where != "lanes":
        lanes = np.broadcast_to(np.arange(3)[:, None], (*shape, 4)), *targets[1:]
        order = rng.permutation(12)
        targets = [each.reshape(2, 1, 12)[..., order] for each in lanes]
    return Batch(*map(jnp.asarray, (prefix_tokens, prefix_valid, pack_tokens, pack_rows, *targets)))


def packed_batch(seed: int) -> Batch:
    """The sequences three rows to a pack, of which any two are there, and any slots."""
    rng = np.random.default_rng(seed)
    prefixes, rows, slots, targets = tokens_and_targets()
    prefix = map(np.stack, zip(*(padded(p, 6, rng, "anywhere") for p in prefixes), strict=True))
    pack_tokens, pack_rows = rng.integers(0, VOCAB, (2, 2, 16)), np.zeros((2, 2, 16), np.int32)
    lanes = {
        "target_rows": rng.integers(0, 6, (2, 1, 12)),
        "target_slots": rng.integers(0, 16, (2, 1, 12)),
        "target_tokens": rng.integers(0, VOCAB, (2, 1, 12)),
        "target_weights": np.zeros((2, 1, 12), np.float32),
    }
    for g in range(2):
        pack = rng.integers(2)
        numbers = np.sort(rng.choice(3, 2, replace=False))
        kept = rng.choice(12, (2, TARGETS), replace=False)
        whole, valid = padded(np.concatenate(rows[g]), 16, rng, "anywhere")
        filled = np.split(np.flatnonzero(valid), [len(rows[g][0])])
        pack_tokens[g, pack] = whole
        for r, number in enumerate(numbers):
            pack_rows[g, pack, filled[r]] = number + 1
            lanes["target_rows"][g, 0, kept[r]] = 3 * pack + number
            lanes["target_slots"][g, 0, kept[r]] = filled[r][slots[g][r]]
            lanes["target_tokens"][g, 0, kept[r]] = targets[g][r]
            lanes["target_weights"][g, 0, kept[r]] = 1
    arrays = (*prefix, pack_tokens, pack_rows, *lanes.values())
    return Batch(*map(jnp.asarray, arrays), packed=3)


# A derivative through four norms a layer, and soft caps or norms of queries and keys besides, loses
# a little more in float32; how much depends on the CPU (gemma3_text: 2.3e-5 with AVX-512).
LOOSER = {"gemma2": 3e-5, "gemma3_text": 3e-5}


def assert_close(found, expected, tolerance: float) -> None:
    """Equal to `tolerance` of the largest entry, leaf by leaf."""
    for (path, one), two in zip(jax.tree_util.tree_leaves_with_path(found), expected, strict=True):
        one, two = np.asarray(one), np.asarray(two)
        error = np.abs(one - two).max() / np.abs(two).max()
        assert error < tolerance, f"{jax.tree_util.keystr(path)} is off by {error:.1e}"


def assert_as_naive(family: str, virtual: int, batch: Batch) -> None:
    value, grads = shared(family, random_adapter(family, virtual=virtual), batch)
    expected_value, expected_grads = naive_total(family, virtual)
    assert float(value) == pytest.approx(float(expected_value), rel=1e-5)
    assert all(np.abs(leaf).max() > 0 for leaf in expected_grads)
    assert_close(grads, expected_grads, LOOSER.get(family, 1e-5))


@with_virtual
@pytest.mark.parametrize(("where", "seed"), PLACES)
def test_loss_and_gradients_equal_the_naive_concatenation(family, virtual, where, seed):
    assert_as_naive(family, virtual, make_batch(where, seed))


@pytest.mark.parametrize("virtual", [0, 3])
@pytest.mark.parametrize("family", [*CONFIGS, "mixtral"])
def test_lanes_of_a_row_each_give_the_same(family, virtual):
    """Lanes are no family's own, but that experts read every slot of them."""
    assert_as_naive(family, virtual, make_batch("lanes", 0))


@jit
def read_rows(family: str, adapter: Adapter, prefix_tokens, prefix_valid, tokens, valid):
    """Rows behind the prefix cache: their first choices, the position after, and the cache."""
    decoder = model(family)
    prefix, start = prefill(decoder, prefix_tokens, prefix_valid, adapter=adapter)
    positions = positions_of(valid, start[:, None])
    hidden, cache = decoder(tokens, positions, prefix, adapter=adapter)
    # The last real token of a row may stand before padding.
    hidden = jnp.take_along_axis(hidden, positions.argmax(-1)[..., None, None], axis=2)
    choices = decoder.logits(hidden).argmax(-1)
    return choices, positions.max(-1, keepdims=True) + 1, cache.with_room(STEPS)


@jit
def read_token(family: str, adapter: Adapter, tokens, positions, cache: Cache):
    """One more token of every row: the next choices, the position after, and the cache."""
    hidden, cache = model(family)(tokens, positions, cache, adapter=adapter)
    return model(family).logits(hidden).argmax(-1), positions + 1, cache


def greedy(family: str, adapter: Adapter, batch: Batch) -> np.ndarray:
    """Continues every row by `STEPS` tokens: `[group, row, step]`."""
    read = [getattr(batch, name) for name in READ]
    choices, positions, cache = read_rows(family, adapter, *read)
    picked = [choices]
    while len(picked) < STEPS:
        choices, positions, cache = read_token(family, adapter, choices, positions, cache)
        picked.append(choices)
    return np.concatenate(picked, axis=-1)


@jit
def naive_choices(family: str, adapter: Adapter, sequence):
    """What follows each token of one sequence run alone: `[slot]`."""
    return naive_logits(family, adapter, sequence).argmax(-1)


@with_virtual
def test_greedy_through_the_prefix_cache_equals_the_naive_concatenation(family, virtual):
    prefixes, rows, _, _ = tokens_and_targets()
    adapter = random_adapter(family, virtual=virtual)
    for where, seed in [("right", 0), ("anywhere", 3)]:
        batch = make_batch(where, seed)
        continued = greedy(family, adapter, batch)
        for g, prefix in enumerate(prefixes):
            filled = np.flatnonzero(np.asarray(batch.pack_rows[g]).any(-1))
            for row, answer in zip(rows[g], continued[g, filled], strict=True):
                # Each token must be the naive pass's choice after the ones before it.
                sequence = np.concatenate([prefix, row, answer])
                choices = naive_choices(family, adapter, sequence)[len(sequence) - STEPS - 1 : -1]
                np.testing.assert_array_equal(answer, choices)


@jit
def logits_of(family: str, batch: Batch):
    return target_logits(model(family), batch)


@family
@pytest.mark.parametrize("where", ["lanes", "packed"])
def test_a_padded_prefix_is_as_good_as_none(family, where):
    batch = make_batch(where, 0)
    padding = batch.replace(prefix_valid=jnp.zeros_like(batch.prefix_valid))
    none = batch.replace(
        prefix_tokens=batch.prefix_tokens[:, :0], prefix_valid=batch.prefix_valid[:, :0]
    )
    real = np.asarray(batch.target_weights) > 0
    expected = logits_of(family, none)[real]
    np.testing.assert_allclose(logits_of(family, padding)[real], expected, atol=1e-5)
    assert np.abs(logits_of(family, batch)[real] - expected).max() > 0.1


@family
def test_rows_see_their_own_prefix_only(family):
    batch = make_batch("lanes", 0)
    real = np.asarray(batch.target_weights) > 0
    other = batch.replace(prefix_tokens=batch.prefix_tokens.at[0].set(11))
    one, two = logits_of(family, batch), logits_of(family, other)
    np.testing.assert_array_equal(one[1], two[1])
    assert np.abs(one[0] - two[0])[real[0]].max() > 0.1


@family
def test_packed_rows_dont_see_one_another(family):
    """Nor those behind them: other tokens of one row change nothing in another."""
    batch = make_batch("packed", 9)
    last = batch.pack_rows.max(-1, keepdims=True)
    of_last = (batch.pack_rows == last) & (last > 0)
    others = batch.replace(pack_tokens=jnp.where(of_last, 11, batch.pack_tokens))
    one, two = logits_of(family, batch), logits_of(family, others)
    number = batch.target_rows % 3 + 1
    in_last = number == batch.pack_rows.max((1, 2))[:, None, None]
    real = np.asarray(batch.target_weights) > 0
    np.testing.assert_allclose(one[real & ~in_last], two[real & ~in_last], atol=1e-6)
    assert np.abs(one - two)[real & in_last].max() > 0.1


def test_rows_of_several_texts_are_read_at_once():
    decoder, tokens = model("gpt2"), jnp.ones((1, 1, 4), int)
    _, cache = decoder(tokens, jnp.arange(4)[None, None])
    with pytest.raises(ValueError, match="several texts"):
        decoder(tokens, 4 + jnp.arange(4)[None, None], cache, texts=tokens)


def test_positions_count_real_tokens():
    valid = jnp.array([[0, 1, 1, 0, 1], [0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(
        positions_of(valid, jnp.array([10, 3])), [[-1, 10, 11, -1, 12], [-1] * 5]
    )


@pytest.mark.parametrize("where", ["anywhere", "packed"])
@pytest.mark.parametrize("family", ["gpt2", "bloom", "qwen2", "gemma3_text", "mixtral"])
def test_prefix_and_rows_read_jointly_are_as_one_after_another(family, where, monkeypatch):
    """As they are read on a mesh, and with dropout."""
    batch, adapter = make_batch(where, 5), random_adapter(family, virtual=3)
    ahead = np.pad(batch.prefix_valid, ((0, 0), (3, 0)), constant_values=1)
    valid = ahead, np.asarray(batch.pack_rows) > 0
    outcomes = []
    for jointly in (True, False):
        monkeypatch.setattr(
            "pintern.models.shared_prefix.reads_jointly", lambda _, is_=jointly: is_
        )
        reading = jax.jit(lambda: read_batch(model(family), batch, adapter=adapter, whole=True))()
        real = (x * v[..., None] for x, v in zip(reading[1:], valid, strict=False))
        outcomes.append((*real, reading.routed))
    for one, two in zip(*map(jax.tree.leaves, outcomes), strict=True):
        np.testing.assert_allclose(one, two, atol=2e-5)
    assert (outcomes[0][2] is None) == (family != "mixtral")
