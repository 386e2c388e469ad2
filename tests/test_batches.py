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
    first_steps,
    make_batch,
    padding_share,
    round_up,
    step_indices,
)

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


@pytest.mark.parametrize("count", [5, WINDOW, 2 * WINDOW + 3])
def test_first_steps_are_those_of_training(count):
    lengths = lengths_of(90)
    alone = [step_indices(step, lengths, rows=4, seed=3) for step in range(count)]
    np.testing.assert_array_equal(first_steps(count, lengths, rows=4, seed=3), alone)


def steps_of(rows: list[Row], count: int = 40) -> list[np.ndarray]:
    lengths = np.array([len(row.tokens) for row in rows])
    return [step_indices(step, lengths, rows=4, seed=0) for step in range(count)]


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
        assert longest <= shape.row
        most_targets = max(len(row.tokens) - row.start for row in chosen)
        for narrower in shapes.rising[: shapes.rising.index(shape)]:
            assert narrower.row < longest or narrower.target < most_targets


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
        assert max(len(row.read) for row in chosen) <= shape.row
    for shape in shapes.rising[:-1]:
        assert shape.target == -(-max(met[shape]) // 8) * 8
    # Whatever comes, the last shape holds it.
    most = max(len(row.tokens) - row.start for row in rows)
    assert lane_rows * most <= shapes.rising[-1].target < lane_rows * most + 8


def test_a_lane_that_is_too_full_takes_a_wider_shape():
    rows = [Row([1] * 16, 12), Row([1] * 16, 12), Row([1] * 16, 2), Row([1] * 40, 20)]
    shapes = Shapes.plan((), rows, [[0, 1], [2, 3]], padding=0.0, lane_rows=2)
    assert shapes.rising == (Shape(0, 16, 8), Shape(0, 40, 40))
    assert shapes.shape_for([rows[0], rows[1]]).row == 16
    assert shapes.shape_for([rows[0], rows[2]]).row == 40


def slots_of(widths: tuple[int, ...], longest: list[int]) -> int:
    return sum(min(width for width in widths if width >= length) for length in longest)


@pytest.mark.parametrize("most", [1, 2, 3, 4])
def test_no_other_widths_have_fewer_slots(most):
    rows = random_rows(60)
    steps = steps_of(rows)
    longest = [max(len(rows[i].read) for i in step) for step in steps]
    planned = tuple(
        s.row for s in Shapes.plan((), rows, steps, most=most, padding=0.0, slack=0.0).rising
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
        return [shape.row for shape in planned.rising]

    assert widths(0, 0.0) == [8, 24, 40]
    assert len(widths(0, 0.2)) == 2
    # Behind a long prefix the rows' padding is little.
    assert widths(1000, 0.1) == [40]


def test_widths_that_save_next_to_nothing_are_left_out():
    # Each step has a row of the longest kind, or nearly so.
    rows = [Row([1] * n, n - 1) for n in (80, 8, 8, 8, 80, 8, 8, 8, 80, 8, 8, 8, 72, 8, 8, 8)]
    planned = Shapes.plan((), rows, np.arange(16).reshape(4, 4))
    assert [shape.row for shape in planned.rising] == [80]


def test_narrow_rows_have_few_targets():
    rows = [Row([1] * 8, 6), Row([1] * 40, 10)]
    shapes = Shapes.plan((), rows, [[0], [1]], padding=0.0)
    assert shapes.rising == (Shape(0, 8, 8), Shape(0, 40, 32))


def test_without_steps_there_is_one_shape():
    assert Shapes.plan([1, 2], random_rows(9)).rising[0].prefix == 8
    assert len(Shapes.plan([1, 2], random_rows(9)).rising) == 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("lane_rows", [1, 2, 6])
def test_a_batch_holds_prefix_rows_and_targets(seed, lane_rows):
    rows = random_rows(6, seed)
    prefix = list(range(1, 12))
    batch = make_batch(prefix, rows, Shape(16, 56, 56 * lane_rows), lane_rows=lane_rows)
    assert batch.target_rows.shape == (1, 6 // lane_rows, 56 * lane_rows)
    assert batch.prefix_tokens[0, :11].tolist() == prefix
    assert batch.prefix_valid[0].tolist() == [1] * 11 + [0] * 5
    for r, row in enumerate(rows):
        valid = batch.row_valid[0, r]
        assert batch.row_tokens[0, r][valid == 1].tolist() == row.tokens[:-1]
        lane, place = divmod(r, lane_rows)
        real = (batch.target_weights[0, lane] == 1) & (batch.target_rows[0, lane] == place)
        assert batch.target_tokens[0, lane][real].tolist() == row.tokens[row.start :]
        # The hidden state at a slot predicts the token after it.
        after = np.array(row.tokens)[batch.target_slots[0, lane][real] + 1]
        np.testing.assert_array_equal(after, batch.target_tokens[0, lane][real])
    assert batch.target_weights.sum() == sum(len(row.tokens) - row.start for row in rows)


@pytest.mark.parametrize("lane_rows", [1, 2, 4])
def test_rows_and_their_targets_find_each_other(lane_rows):
    rows = [Row([1] * (2 + n), 2) for n in (3, 1, 4, 2)]
    batch = make_batch((), rows, Shape(0, 8, 4 * lane_rows), lane_rows=lane_rows)
    batch = jax.tree.map(jnp.asarray, batch)
    numbers = batch.at_targets(jnp.array([[1.0, 2.0, 3.0, 4.0]]))
    real = batch.target_weights > 0
    assert np.asarray(numbers)[real].tolist() == [1, 1, 1, 2, 3, 3, 3, 3, 4, 4]
    # Padding stands at a row too, and must not count for it.
    by_row = np.asarray(batch.by_row(numbers, 0.0))
    assert by_row.sum(-1).tolist() == [[3, 2, 12, 8]]


def test_an_empty_prefix_has_no_slots():
    assert make_batch((), random_rows(2), Shape(0, 56, 56)).prefix_tokens.shape == (1, 0)


def test_padding_share_counts_prefix_and_rows():
    batch = make_batch([1, 2], [Row([1, 2, 3, 4], 1), Row([1, 2], 1)], Shape(8, 8, 8))
    assert padding_share(batch) == pytest.approx(1 - (2 + 3 + 1) / (8 + 16))
