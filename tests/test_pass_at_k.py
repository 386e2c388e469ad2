"""pass@k: unbiased, exact at its ends, and finite where binomials aren't."""

import itertools
import math

import pytest

from pintern.errors import UserError
from pintern.evaluation.pass_at_k import pass_at_k, pass_table


def test_it_is_the_share_of_choices_of_k_that_hold_a_right_one():
    for samples in range(1, 8):
        for right in range(samples + 1):
            for k in range(1, samples + 1):
                choices = list(itertools.combinations(range(samples), k))
                share = sum(min(choice) < right for choice in choices) / len(choices)
                assert pass_at_k(samples, right, k) == pytest.approx(share, abs=1e-12)


def test_large_numbers_neither_overflow_nor_lose_digits():
    exact = 1 - math.comb(9_990, 100) / math.comb(10_000, 100)
    assert pass_at_k(10_000, 10, 100) == pytest.approx(exact, rel=1e-9)
    assert pass_at_k(10_000, 9_950, 100) == 1.0


def test_table_starts_at_the_mean_rises_and_ends_at_n():
    right = [0, 1, 3, 12, 12]
    table = pass_table(right, 12)
    assert list(table) == [1, 2, 5, 10, 12]
    assert table[1] == pytest.approx(100 * sum(right) / 12 / 5)
    assert table[12] == pytest.approx(100 * 4 / 5)
    assert list(table.values()) == sorted(table.values())
    assert pass_table([1, 0], 1) == {1: 50.0}


@pytest.mark.parametrize(("samples", "right", "k"), [(3, 1, 4), (3, 1, 0), (3, 4, 1), (3, -1, 1)])
def test_nonsense_is_refused(samples, right, k):
    with pytest.raises(UserError, match=f"pass@{k} of {samples}"):
        pass_at_k(samples, right, k)
