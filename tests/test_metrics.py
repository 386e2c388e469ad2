"""Scores: scales, slices, intervals, and what a user is told."""

import sqlite3

import numpy as np
import pytest

from pintern.errors import UserError
from pintern.evaluation.metrics import bootstrap_interval, score_predictions, score_slices
from pintern.prompts.task import Example


@pytest.fixture
def database(tmp_path):
    path = tmp_path / "one.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript("CREATE TABLE t (a); INSERT INTO t VALUES (1), (2), (3);")
    connection.close()
    return path


def test_exact_match_normalises_white_space_only():
    scores = score_predictions("exact", [" a  b\n", "A b", "ab", ""], ["a b"] * 4)
    assert scores.per_example == [100.0, 0.0, 0.0, 0.0]
    assert scores.value == 25.0
    assert scores.reasons == {"right": 1, "mismatch": 3}


def test_sql_counts_each_way_to_fail(database):
    predictions = ["SELECT sum(a) FROM t", "SELECT 5", "SELEC", "DROP TABLE t"]
    scores = score_predictions("sql", predictions, ["SELECT 6"] * 4, database=database)
    assert scores.value == 25.0
    assert scores.reasons == {"right": 1, "mismatch": 1, "error": 1, "refused": 1}
    assert sqlite3.sqlite_version in scores.signature


def test_sql_takes_a_database_per_example(database, tmp_path):
    other = tmp_path / "two.sqlite"
    connection = sqlite3.connect(other)
    connection.executescript("CREATE TABLE u (b); INSERT INTO u VALUES (6);")
    connection.close()
    golds = ["SELECT sum(a) FROM t", "SELECT b FROM u"]
    assert (
        score_predictions("sql", ["SELECT 6"] * 2, golds, database=[database, other]).value == 100
    )
    with pytest.raises(UserError, match="1 databases for 2"):
        score_predictions("sql", ["SELECT 6"] * 2, golds, database=[database])


def test_facts_that_name_no_database_are_passed_over_or_told(database):
    facts = {"table": {"name": "t"}, "database": ""}
    example = Example("", "SELECT 6", facts=facts)
    assert score_predictions("sql", ["SELECT 6"], [example], database=database).value == 100
    example = Example("", "SELECT 6", id="e7", facts={"database": 5})
    with pytest.raises(UserError, match=r"facts\.database of example e7 is 5\."):
        score_predictions("sql", ["SELECT 6"], [example], database=database)


def test_bleu_is_the_corpus_score_with_its_signature():
    golds = ["find . -name a.txt -print", "ls -l | wc -l now"]
    same = score_predictions("bleu", golds, golds)
    assert same.value == pytest.approx(100)
    assert same.per_example == pytest.approx([100, 100])
    assert "tok:none" in same.signature
    assert "version:" in same.signature
    worse = score_predictions("bleu", [golds[0], "nothing of it here at all"], golds)
    assert 0 < worse.value < 100
    assert worse.per_example[0] == pytest.approx(100) and worse.per_example[1] < 10
    assert worse.value != pytest.approx(np.mean(worse.per_example))


def test_bleu_tokenizer_is_a_choice():
    assert "tok:13a" in score_predictions("bleu", ["a b"], ["a b"], tokenize="13a").signature
    with pytest.raises(UserError, match="13a"):
        score_predictions("bleu", ["a"], ["a"], tokenize="words")


def test_slices_partition_the_whole(database):
    predictions = ["SELECT 1", "SELECT 2", "SELECT 3", "SELECT 4", "SELECT 9"]
    golds = ["SELECT 1", "SELECT 2", "SELECT 0", "SELECT 4", "SELECT 0"]
    names = ["easy", "hard", "easy", "hard", "easy"]
    overall, slices = score_slices("sql", predictions, golds, names, database=database)
    assert list(slices) == ["easy", "hard"]
    assert slices["easy"].per_example == [100.0, 0.0, 0.0]
    assert slices["hard"].value == 100.0
    weighted = sum(scores.value * len(scores.per_example) for scores in slices.values())
    assert weighted / len(golds) == pytest.approx(overall.value) == pytest.approx(60.0)


@pytest.mark.parametrize("metric", ["exact", "bleu"])
def test_a_slice_scores_as_it_would_alone(metric):
    predictions, golds = ["a b c d e", "a b x d e", "q"], ["a b c d e"] * 3
    _, slices = score_slices(metric, predictions, golds, ["x", "y", "x"])
    alone = score_predictions(metric, [predictions[0], predictions[2]], golds[:2])
    assert slices["x"] == alone


def test_interval_holds_the_mean_and_narrows_with_more_examples():
    scores = [100.0, 0.0, 100.0, 100.0] * 25
    low, high = bootstrap_interval(scores, seed=0)
    assert low < 75 < high
    assert (low, high) == bootstrap_interval(scores, seed=0)
    # A mean of 100 Bernoulli(0.75) draws has a standard error of 4.33.
    assert high - low == pytest.approx(2 * 1.96 * 4.33, rel=0.15)
    low_more, high_more = bootstrap_interval(scores * 16, seed=0)
    assert (high - low) / (high_more - low_more) == pytest.approx(4, rel=0.15)


def test_interval_of_equal_scores_is_a_point():
    assert bootstrap_interval([100.0] * 8, seed=3) == (100.0, 100.0)


def test_interval_of_no_scores_is_refused():
    with pytest.raises(UserError, match="No scores"):
        bootstrap_interval([], seed=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rouge", ["a"], ["a"]), "Known: sql, .*exact, bleu"),
        (("exact", ["a"], ["a", "b"]), "1 predictions for 2"),
        (("exact", [], []), "No predictions"),
        (("sql", ["a"], ["a"]), "needs a database"),
    ],
)
def test_mistakes_are_told(arguments, message):
    with pytest.raises(UserError, match=message):
        score_predictions(*arguments)


def test_a_setting_that_no_metric_has_is_told_and_another_metric_s_is_not():
    assert score_predictions("exact", ["a"], ["a"], tokenize="13a", end="x").value == 100
    with pytest.raises(UserError, match=r"setting 'tokenise'\. Known: .*tokenize"):
        score_predictions("bleu", ["a"], ["a"], tokenise="13a")


def test_slice_names_must_fit():
    with pytest.raises(UserError, match="1 slice names for 2"):
        score_slices("exact", ["a", "b"], ["a", "b"], ["x"])
