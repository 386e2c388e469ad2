"""Which examples a step trains on, and how they become arrays."""

import numpy as np
import pytest

from pintern.prompts.rows import Row
from pintern.training.batches import (
    Shape,
    Shapes,
    make_batch,
    padding_share,
    round_up,
    step_indices,
)

WINDOW = 16


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


def test_a_step_holds_rows_of_like_length():
    lengths = lengths_of(640)
    spread = [np.ptp(lengths[step_indices(s, lengths, rows=8, seed=0)]) for s in range(80)]
    assert np.mean(spread) < 0.25 * np.ptp(lengths)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_planned_shape_holds_every_batch(count):
    rows = random_rows(60)
    shapes = Shapes.plan(list(range(13)), rows, count=count)
    assert shapes.prefix == 16
    assert len(shapes.widths) <= count
    assert set(shapes.all()) == {Shape(16, width, shapes.targets) for width in shapes.widths}
    lengths = np.array([len(row.tokens) for row in rows])
    for step in range(40):
        chosen = [rows[i] for i in step_indices(step, lengths, rows=4, seed=0)]
        shape = shapes.shape_for(chosen)
        assert shape in shapes.all()
        assert max(len(row.tokens) for row in chosen) <= shape.row
        assert max(len(row.tokens) - row.start for row in chosen) <= shape.target
        narrower = [width for width in shapes.widths if width < shape.row]
        assert all(width < max(len(row.tokens) for row in chosen) for width in narrower)


def test_two_widths_halve_the_rows():
    rows = [Row([1] * n, n - 1) for n in (*[8] * 10, *[40] * 10)]
    assert Shapes.plan((), rows).widths == (8, 40)


@pytest.mark.parametrize("seed", range(5))
def test_a_batch_holds_prefix_rows_and_targets(seed):
    rows = random_rows(6, seed)
    prefix = list(range(1, 12))
    batch = make_batch(prefix, rows, Shape(16, 56, 56))
    assert batch.prefix_tokens[0, :11].tolist() == prefix
    assert batch.prefix_valid[0].tolist() == [1] * 11 + [0] * 5
    for r, row in enumerate(rows):
        valid = batch.row_valid[0, r]
        assert batch.row_tokens[0, r][valid == 1].tolist() == row.tokens
        real = batch.target_weights[0, r] == 1
        assert batch.target_tokens[0, r][real].tolist() == row.tokens[row.start :]
        # The hidden state at a slot predicts the token after it.
        after = batch.row_tokens[0, r][batch.target_slots[0, r][real] + 1]
        np.testing.assert_array_equal(after, batch.target_tokens[0, r][real])
        assert batch.target_weights[0, r].sum() == len(row.tokens) - row.start


def test_an_empty_prefix_has_no_slots():
    assert make_batch((), random_rows(2), Shape(0, 56, 56)).prefix_tokens.shape == (1, 0)


def test_padding_share_counts_prefix_and_rows():
    batch = make_batch([1, 2], [Row([1, 2, 3], 1), Row([1], 1)], Shape(8, 8, 8))
    assert padding_share(batch) == pytest.approx(1 - (2 + 3 + 1) / (8 + 16))
