"""Which examples a step trains on, and how they become arrays."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pintern.prompts.rows import Row
from pintern.training.batches import (
    Shape,
    Shapes,
    make_batch,
    padding_share,
    round_up,
)
from pintern.training.order import packing, step_indices, stretch_indices

WINDOW = 64


def lengths_of(count: int) -> np.ndarray:
    return np.random.default_rng(3).integers(5, 60, count)


def random_rows(count: int, seed: int = 0) -> list[Row]:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        tokens = rng.integers(1, 99, rng.integers(3, 50)).tolist()
        rows.append(Row(tokens, int(rng.integers(1, len(tokens)))))
    return rows


def test_round_up():
    assert [round_up(n) for n in (0, 1, 8, 9)] == [0, 8, 8, 16]
    assert round_up(17, 16) == 32


def test_the_order_is_a_pure_function_of_step_and_seed():
    lengths = lengths_of(50)
    forwards = [step_indices(step, lengths, rows=4, seed=1) for step in range(40)]
    backwards = [step_indices(step, lengths, rows=4, seed=1) for step in reversed(range(40))]
    np.testing.assert_array_equal(forwards, backwards[::-1])
    other = [step_indices(step, lengths, rows=4, seed=2) for step in range(40)]
    assert not np.array_equal(forwards, other)


@pytest.mark.parametrize(("count", "rows"), [(64, 4), (128, 4), (32, 1), (16, 4), (7, 8)])
def test_every_example_comes_once_an_epoch(count, rows):
    """Over whole windows: after n epochs' worth of rows, each was seen n times."""
    windows = count  # so that windows · WINDOW · rows is a multiple of `count`
    seen = np.concatenate(
        [step_indices(s, lengths_of(count), rows=rows, seed=0) for s in range(windows * WINDOW)]
    )
    assert np.bincount(seen, minlength=count).tolist() == [WINDOW * rows] * count


@pytest.mark.parametrize(("count", "rows"), [(50, 4), (1000, 3), (5, 2)])
def test_counts_never_differ_by_more_than_one_after_a_window(count, rows):
    seen = np.zeros(count, int)
    for step in range(10 * WINDOW):
        seen += np.bincount(
            step_indices(step, lengths_of(count), rows=rows, seed=0), minlength=count
        )
        if (step + 1) % WINDOW == 0:
            assert seen.max() - seen.min() <= 1


def test_no_window_reaches_beyond_a_stretch():
    """Two stages in which other examples are long: each is still seen once an epoch."""
    lengths = (lengths_of(80), lengths_of(80)[::-1])
    stretches = (range(7), range(7, 20))
    seen = [
        step_indices(step, lengths[number], rows=4, seed=0, stretch=stretch)
        for number, stretch in enumerate(stretches)
        for step in stretch
    ]
    assert np.bincount(np.concatenate(seen)).tolist() == [1] * 80
    whole = [step_indices(step, lengths[0], rows=4, seed=0) for step in range(20)]
    assert not np.array_equal(seen, whole)


def test_a_step_holds_rows_of_like_length():
    lengths = lengths_of(640)
    spread = [np.ptp(lengths[step_indices(s, lengths, rows=8, seed=0)]) for s in range(80)]
    assert np.mean(spread) < 0.25 * np.ptp(lengths)


@pytest.mark.parametrize("stretch", [range(5), range(WINDOW), range(9, 12 + 2 * WINDOW)])
@pytest.mark.parametrize("packed", [1, 4])
def test_a_stretch_has_the_steps_of_training(stretch, packed):
    lengths, how = lengths_of(90), {"rows": 4, "seed": 3, "packed": packed}
    alone = [step_indices(step, lengths, stretch=stretch, **how) for step in stretch]
    np.testing.assert_array_equal(stretch_indices(stretch, lengths, **how), alone)


@pytest.mark.parametrize("packed", [1, 2, 4, 8])
def test_packing_deals_out_the_same_examples(packed):
    lengths = lengths_of(640)
    seen = stretch_indices(range(80), lengths, rows=8, seed=0, packed=packed)
    assert np.bincount(seen.ravel()).tolist() == [1] * 640


@pytest.mark.parametrize(("packed", "cut"), [(2, 2), (4, 4), (4, 2), (8, 8), (8, 4), (8, 2)])
def test_packs_and_what_is_cut_out_of_them_are_of_like_length(packed, cut):
    lengths = lengths_of(2 * WINDOW * 8)
    steps = stretch_indices(range(2 * WINDOW), lengths, rows=8, seed=0, packed=packed)
    packs = lengths[steps].reshape(-1, cut).sum(axis=1)
    assert packs.max() < (1.15 if cut == packed else 1.3) * packs.mean()
    unpacked = stretch_indices(range(2 * WINDOW), lengths, rows=8, seed=0)
    assert lengths[unpacked].reshape(-1, cut).sum(axis=1).max() > 1.8 * packs.mean()


def test_rows_are_packed_where_that_saves_padding():
    short_and_long = np.resize([10, 54], 640)
    seldom_long = np.resize([10, 10, 10, 10, 10, 10, 10, 122], 640)
    assert packing(np.full(640, 48), rows=8) == 1
    assert packing(short_and_long, rows=8) == 2
    assert packing(seldom_long, rows=8) == 8
    # The same lengths, so long that scores cost more than the padding.
    assert packing(np.resize([40, 64], 640), rows=8) == 2
    assert packing(np.resize([40, 64], 640) * 16, rows=8) == 1
    assert packing(short_and_long, rows=7) == 7


def steps_of(rows: list[Row], count: int = 40, packed: int = 1) -> np.ndarray:
    lengths = np.array([len(row.tokens) for row in rows])
    return stretch_indices(range(count), lengths, rows=4, seed=0, packed=packed)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_planned_shape_holds_every_batch(most):
    rows = random_rows(60)
    shapes = Shapes.plan(list(range(13)), rows, steps_of(rows, 16), most=most, padding=0.0)
    assert 1 <= len(shapes.rising) <= most
    assert {shape.prefix for shape in shapes.rising} == {16}
    for step in steps_of(rows):
        chosen = [rows[i] for i in step]
        shape = shapes.shape_for(chosen)
        assert shape in shapes.rising
        assert max(len(row.tokens) - row.start for row in chosen) <= shape.target
        longest = max(len(row.read) for row in chosen)
        assert longest <= shape.pack
        most_targets = max(len(row.tokens) - row.start for row in chosen)
        for narrower in shapes.rising[: shapes.rising.index(shape)]:
            assert narrower.pack < longest or narrower.target < most_targets


def targets_of(chosen: list[Row], lane_rows: int) -> int:
    """Of the fullest lane."""
    counts = [len(row.tokens) - row.start for row in chosen]
    return max(sum(counts[i : i + lane_rows]) for i in range(0, len(counts), lane_rows))


@pytest.mark.parametrize("lane_rows", [2, 4])
def test_a_lane_has_room_for_its_own_targets_and_no_more(lane_rows):
    rows = random_rows(60)
    steps = steps_of(rows, 16)
    shapes = Shapes.plan((), rows, steps, most=4, padding=0.0, lane_rows=lane_rows)
    met: dict[Shape, list[int]] = {shape: [] for shape in shapes.rising}
    for step in steps:
        chosen = [rows[i] for i in step]
        shape = shapes.shape_for(chosen)
        met[shape].append(targets_of(chosen, lane_rows))
        assert max(len(row.read) for row in chosen) <= shape.pack
    for shape in shapes.rising[:-1]:
        assert shape.target == -(-max(met[shape]) // 8) * 8
    # Whatever comes, the last shape holds it.
    most = max(len(row.tokens) - row.start for row in rows)
    assert lane_rows * most <= shapes.rising[-1].target < lane_rows * most + 8


def test_a_lane_that_is_too_full_takes_a_wider_shape():
    rows = [Row([1] * 16, 12), Row([1] * 16, 12), Row([1] * 16, 2), Row([1] * 40, 20)]
    shapes = Shapes.plan((), rows, [[0, 1], [2, 3]], padding=0.0, lane_rows=2)
    assert shapes.rising == (Shape(0, 16, 8), Shape(0, 40, 40))
    assert shapes.shape_for([rows[0], rows[1]]).pack == 16
    assert shapes.shape_for([rows[0], rows[2]]).pack == 40


def slots_of(widths: tuple[int, ...], longest: list[int]) -> int:
    return sum(min(width for width in widths if width >= length) for length in longest)


@pytest.mark.parametrize("most", [1, 2, 3, 4])
def test_no_other_widths_have_fewer_slots(most):
    rows = random_rows(60)
    steps = steps_of(rows)
    longest = [max(len(rows[i].read) for i in step) for step in steps]
    planned = tuple(
        s.pack for s in Shapes.plan((), rows, steps, most=most, padding=0.0, slack=0.0).rising
    )
    assert planned == tuple(sorted(set(planned)))
    widest = max(len(row.read) for row in rows) + 7 & ~7
    others = itertools.combinations(range(8, widest, 8), most - 1)
    best = min(slots_of((*widths, widest), longest) for widths in others)
    assert slots_of(planned, longest) == best


def test_no_more_widths_than_padding_asks_for():
    rows = [Row([1] * (n + 1), n) for n in (*[8] * 16, *[24] * 16, *[40] * 16)]
    steps = np.arange(48).reshape(12, 4)

    def widths(prefix: int, padding: float) -> list[int]:
        planned = Shapes.plan([1] * prefix, rows, steps, padding=padding)
        return [shape.pack for shape in planned.rising]

    assert widths(0, 0.0) == [8, 24, 40]
    assert len(widths(0, 0.2)) == 2
    # Behind a long prefix the rows' padding is little.
    assert widths(1000, 0.1) == [40]


def test_widths_that_save_next_to_nothing_are_left_out():
    # Each step has a row of the longest kind, or nearly so.
    rows = [Row([1] * n, n - 1) for n in (80, 8, 8, 8, 80, 8, 8, 8, 80, 8, 8, 8, 72, 8, 8, 8)]
    planned = Shapes.plan((), rows, np.arange(16).reshape(4, 4))
    assert [shape.pack for shape in planned.rising] == [80]


def test_narrow_rows_have_few_targets():
    rows = [Row([1] * 8, 6), Row([1] * 40, 10)]
    shapes = Shapes.plan((), rows, [[0], [1]], padding=0.0)
    assert shapes.rising == (Shape(0, 8, 8), Shape(0, 40, 32))


@pytest.mark.parametrize("packed", [1, 2, 4])
def test_what_steps_need_is_settled_where_all_are_known(packed):
    rows = random_rows(60)
    steps, how = steps_of(rows, packed=packed), {"lane_rows": 4, "packed": packed}
    known = Shapes.plan((), rows, steps, every=True, **how)
    sample = Shapes.plan((), rows, steps, **how)
    longest = [
        max(sum(len(rows[i].read) for i in pack) for pack in step.reshape(-1, packed))
        for step in steps
    ]
    assert known.rising[-1].pack == round_up(max(longest))
    assert known.rising[-1].packed == packed
    for step in steps:
        assert known.shape_for([rows[i] for i in step]) in known.rising
    # Whatever else may come fits the last shape of a sample.
    any_row = max(rows, key=lambda row: len(row.tokens))
    assert sample.shape_for([any_row] * 4) == sample.rising[-1]
    assert (sample.rising[-1].pack > known.rising[-1].pack) == (packed > 1)
    if packed > 1:
        with pytest.raises(ValueError, match="No shape of"):
            known.shape_for([any_row] * 4)


def test_without_steps_there_is_one_shape():
    assert Shapes.plan([1, 2], random_rows(9)).rising[0].prefix == 8
    assert len(Shapes.plan([1, 2], random_rows(9)).rising) == 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("packed", "lane_rows"), [(1, 1), (1, 2), (1, 6), (2, 2), (2, 6), (3, 3)])
def test_a_batch_holds_prefix_rows_and_targets(seed, packed, lane_rows):
    rows = random_rows(6, seed)
    prefix = list(range(1, 12))
    shape = Shape(16, 56 * packed, 56 * lane_rows, packed)
    batch = make_batch(prefix, rows, shape, lane_rows=lane_rows)
    on_device = jax.tree.map(jnp.asarray, batch)
    assert batch.target_rows.shape == (1, 6 // lane_rows, 56 * lane_rows)
    assert batch.prefix_tokens[0, :11].tolist() == prefix
    assert batch.prefix_valid[0].tolist() == [1] * 11 + [0] * 5
    for r, row in enumerate(rows):
        pack, number = divmod(r, packed)
        (slots,) = np.nonzero(batch.pack_rows[0, pack] == number + 1)
        assert batch.pack_tokens[0, pack][slots].tolist() == row.tokens[:-1]
        lane, place = divmod(r, lane_rows)
        real = (batch.target_weights[0, lane] == 1) & (batch.target_rows[0, lane] == place)
        assert batch.target_tokens[0, lane][real].tolist() == row.tokens[row.start :]
        # The hidden state at a slot predicts the token after it.
        after = np.array(row.tokens)[batch.target_slots[0, lane][real] - slots[0] + 1]
        np.testing.assert_array_equal(after, batch.target_tokens[0, lane][real])
        places = np.asarray(on_device.target_places)[0, lane][real]
        first = (r // packed - lane * lane_rows // packed) * shape.pack
        np.testing.assert_array_equal(places, batch.target_slots[0, lane][real] + first)
    assert batch.target_weights.sum() == sum(len(row.tokens) - row.start for row in rows)
    assert batch.real_tokens == 11 + sum(len(row.tokens) - 1 for row in rows)


@pytest.mark.parametrize("packed", [1, 2, 3])
def test_positions_count_each_rows_tokens_behind_the_prefix(packed):
    rows = random_rows(6)
    batch = jax.tree.map(jnp.asarray, make_batch((), rows, Shape(0, 168, 56, packed)))
    positions = np.asarray(batch.positions(jnp.array([7])))[0]
    for r, row in enumerate(rows):
        here = np.asarray(batch.pack_rows)[0, r // packed] == r % packed + 1
        assert positions[r // packed][here].tolist() == list(range(7, 7 + len(row.tokens) - 1))
    assert (positions[np.asarray(batch.pack_rows)[0] == 0] == -1).all()


@pytest.mark.parametrize(("packed", "lane_rows"), [(1, 1), (1, 2), (1, 4), (2, 2), (2, 4)])
def test_rows_and_their_targets_find_each_other(packed, lane_rows):
    rows = [Row([1] * (2 + n), 2) for n in (3, 1, 4, 2)]
    batch = make_batch((), rows, Shape(0, 16, 4 * lane_rows, packed), lane_rows=lane_rows)
    batch = jax.tree.map(jnp.asarray, batch)
    numbers = batch.at_targets(jnp.array([[1.0, 2.0, 3.0, 4.0]]))
    real = batch.target_weights > 0
    assert np.asarray(numbers)[real].tolist() == [1, 1, 1, 2, 3, 3, 3, 3, 4, 4]
    # Padding stands at a row too, and must not count for it.
    by_row = np.asarray(batch.by_row(numbers, 0.0))
    assert by_row.sum(-1).tolist() == [[3, 2, 12, 8]]
    tokens = np.asarray(batch.at_tokens(jnp.array([[1.0, 2.0, 3.0, 4.0]])))
    wanted = np.arange(1, 5).reshape(-1, packed)
    for number in range(packed):
        here = np.asarray(batch.pack_rows)[0] == number + 1
        np.testing.assert_array_equal(tokens[0][here], np.repeat(wanted[:, number], here.sum(-1)))


def test_an_empty_prefix_has_no_slots():
    assert make_batch((), random_rows(2), Shape(0, 56, 56)).prefix_tokens.shape == (1, 0)


def test_padding_share_counts_prefix_and_rows():
    batch = make_batch([1, 2], [Row([1, 2, 3, 4], 1), Row([1, 2], 1)], Shape(8, 8, 8))
    assert padding_share(batch) == pytest.approx(1 - (2 + 3 + 1) / (8 + 16))
    rows = [Row([1, 2, 3, 4], 1), Row([1, 2], 1)]
    packed = make_batch([1, 2], rows, Shape(8, 8, 8, packed=2), lane_rows=2)
    assert padding_share(packed) == pytest.approx(1 - (2 + 3 + 1) / (8 + 8))
