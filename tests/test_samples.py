"""Several samples per example; pass@k is unbiased, and finite where binomials aren't."""

import itertools
import math

import numpy as np
import pytest

from pintern.errors import UserError
from pintern.evaluation.metrics import Scores, score_predictions
from pintern.evaluation.samples import merge_samples, pass_at_k, pass_table


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


def scores_of(table):
    """Rows are samples, columns are examples."""
    per_example = [100.0 * cell for row in table for cell in row]
    value = sum(per_example) / len(per_example)
    return Scores("exact", value, per_example, "", {})


def test_table_starts_at_the_mean_rises_and_ends_at_n():
    right = [0, 1, 3, 12, 12]
    scores = scores_of([[sample < count for count in right] for sample in range(12)])
    table = pass_table(scores, 12)
    assert list(table) == [1, 2, 5, 10, 12]
    assert table[1] == pytest.approx(scores.value)
    assert table[12] == pytest.approx(100 * 4 / 5)
    assert list(table.values()) == sorted(table.values())
    merged = merge_samples(scores, 12)
    assert merged.value == scores.value
    assert merged.per_example == pytest.approx([100 * count / 12 for count in right])


def test_one_sample_changes_nothing_and_shares_have_no_pass_at_k():
    scores = scores_of([[1, 0]])
    assert merge_samples(scores, 1) is scores
    assert pass_table(scores, 1) == {1: 50.0}
    assert pass_table(scores_of([[1, 0.5], [1, 0]]), 2) == {}


def test_a_corpus_score_is_resampled_by_examples_with_all_their_samples():
    golds = ["a b c d e", "f g h i j"]
    answers = ["a b c d e", "x", "a b c d x", "f g h i j"]
    scores = score_predictions("bleu", answers, golds * 2)
    merged = merge_samples(scores, 2)
    first = score_predictions("bleu", [answers[0], answers[2]], [golds[0]] * 2)
    assert merged.pooled(np.array([0])) == pytest.approx(first.value)
    assert merged.pooled(np.array([0, 1])) == pytest.approx(scores.value)


@pytest.mark.parametrize(("samples", "right", "k"), [(3, 1, 4), (3, 1, 0), (3, 4, 1), (3, -1, 1)])
def test_nonsense_is_refused(samples, right, k):
    with pytest.raises(UserError, match=f"pass@{k} of {samples}"):
        pass_at_k(samples, right, k)
