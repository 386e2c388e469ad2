"""Predictions and gold answers to scores, all on a scale of 0 to 100."""

import dataclasses
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pintern.errors import UserError
from pintern.evaluation.results import MAX_PERMUTED_COLUMNS, RELATIVE_TOLERANCE
from pintern.evaluation.sql import execution_match

RESAMPLES = 2000

METRICS = ("sql", "exact", "bleu")

Database = Path | str | Sequence[Path | str]


@dataclasses.dataclass(frozen=True)
class Scores:
    """One metric over one set of examples.

    Attributes:
      name: the metric.
      value: 0 to 100; the mean of `per_example`, except for BLEU, which is the corpus's.
      per_example: 0 to 100 each, in the order of the predictions.
      signature: how it was computed, enough to compare with another run (sacrebleu's for BLEU).
      reasons: how many examples ended in which way; empty for BLEU.
    """

    name: str
    value: float
    per_example: list[float]
    signature: str
    reasons: dict[str, int]


# Scores of some of the examples, by their indices.
Grade = Callable[[Sequence[int]], Scores]


def score_predictions(
    metric: str,
    predictions: Sequence[str],
    golds: Sequence[str],
    *,
    database: Database | None = None,
    tokenize: str = "none",
) -> Scores:
    """Scores predictions against gold answers.

    Args:
      metric: `sql` (equal results on SQLite), `exact` (equal but for white space) or `bleu`.
      predictions: text, one per example.
      golds: as many gold answers.
      database: for `sql`, one SQLite file for all examples or one for each.
      tokenize: for `bleu`, sacrebleu's tokenizer; `none` splits at white space.

    Raises:
      UserError: an unknown metric or tokenizer, no examples, lists of different lengths, a missing
        database, or a gold query that fails.
    """
    grade = _grader(metric, predictions, golds, database, tokenize)
    return grade(range(len(golds)))


def score_slices(
    metric: str,
    predictions: Sequence[str],
    golds: Sequence[str],
    slices: Sequence[str],
    *,
    database: Database | None = None,
    tokenize: str = "none",
) -> tuple[Scores, dict[str, Scores]]:
    """Scores over all examples, and over those of each slice, in order of first appearance.

    Args:
      metric: see `score_predictions`, as for the arguments that aren't named here.
      predictions: text, one per example.
      golds: as many gold answers.
      slices: name of the slice that each example belongs to.
      database: for `sql`.
      tokenize: for `bleu`.
    """
    if len(slices) != len(predictions):
        raise UserError(f"{len(slices)} slice names for {len(predictions)} predictions.")
    grade = _grader(metric, predictions, golds, database, tokenize)
    members: dict[str, list[int]] = {}
    for index, name in enumerate(slices):
        members.setdefault(name, []).append(index)
    return grade(range(len(golds))), {name: grade(chosen) for name, chosen in members.items()}


def bootstrap_interval(
    per_example: Sequence[float], seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap of the mean: the bounds between which `level` of the means lie.

    Args:
      per_example: scores, of which there must be some.
      seed: of the resampling.
      level: share of the resampled means within the bounds, between 0 and 1.
    """
    if not len(per_example):
        raise UserError("No scores to draw an interval for.")
    if not 0 < level < 1:
        raise UserError(f"level is {level}; it must be between 0 and 1.", "Use 0.95.")
    # Drawing how often each *distinct* score comes up is the same bootstrap, at a cost that for
    # right-or-wrong scores doesn't grow with the number of examples.
    values, counts = np.unique(np.asarray(per_example, np.float64), return_counts=True)
    total = int(counts.sum())
    draws = np.random.default_rng(seed).multinomial(total, counts / total, size=RESAMPLES)
    low, high = np.quantile(draws @ values / total, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _grader(
    metric: str,
    predictions: Sequence[str],
    golds: Sequence[str],
    database: Database | None,
    tokenize: str,
) -> Grade:
    """Grades every example once; what it returns scores any choice of them."""
    if metric not in METRICS:
        raise UserError(f"Unknown metric {metric!r}.", f"Known: {', '.join(METRICS)}.")
    if len(predictions) != len(golds):
        raise UserError(f"{len(predictions)} predictions for {len(golds)} gold answers.")
    if not predictions:
        raise UserError("No predictions to score.", "Evaluate at least one example.")
    if metric == "bleu":
        return _grade_bleu(predictions, golds, tokenize)
    if metric == "sql":
        return _grade_sql(predictions, golds, database)
    return _grade_exact(predictions, golds)


def _grade_sql(
    predictions: Sequence[str], golds: Sequence[str], database: Database | None
) -> Grade:
    if database is None:
        raise UserError("Metric 'sql' needs a database.", "Name the task's SQLite file.")
    one = isinstance(database, Path | str)
    databases = [database] * len(golds) if one else database
    if len(databases) != len(golds):
        raise UserError(f"{len(databases)} databases for {len(golds)} gold queries.")
    examples = zip(databases, predictions, golds, strict=True)
    signature = (
        f"execution|sqlite:{sqlite3.sqlite_version}|rows:multiset,list-if-gold-orders"
        f"|columns:any-order-to-{MAX_PERMUTED_COLUMNS}|floats:{RELATIVE_TOLERANCE:g}"
    )
    return _grade_outcomes(
        "sql", [execution_match(*example).reason for example in examples], signature
    )


def _grade_exact(predictions: Sequence[str], golds: Sequence[str]) -> Grade:
    outcomes = [
        "right" if prediction.split() == gold.split() else "mismatch"
        for prediction, gold in zip(predictions, golds, strict=True)
    ]
    return _grade_outcomes("exact", outcomes, "exact|space:normalised|case:mixed")


def _grade_outcomes(name: str, outcomes: Sequence[str], signature: str) -> Grade:
    def grade(chosen: Sequence[int]) -> Scores:
        reasons = [outcomes[index] for index in chosen]
        per_example = [100.0 * (reason == "right") for reason in reasons]
        value = sum(per_example) / len(per_example)
        return Scores(name, value, per_example, signature, dict(Counter(reasons)))

    return grade


def _grade_bleu(predictions: Sequence[str], golds: Sequence[str], tokenize: str) -> Grade:
    from sacrebleu.metrics import BLEU

    if tokenize not in BLEU.TOKENIZERS:
        raise UserError(
            f"Unknown BLEU tokenizer {tokenize!r}.", f"sacrebleu has: {', '.join(BLEU.TOKENIZERS)}."
        )
    # `force` only silences sacrebleu's warning about input that is tokenised already.
    corpus = BLEU(tokenize=tokenize, force=True)
    sentence = BLEU(tokenize=tokenize, force=True, effective_order=True)

    def grade(chosen: Sequence[int]) -> Scores:
        texts = [predictions[index] for index in chosen]
        references = [golds[index] for index in chosen]
        value = corpus.corpus_score(texts, [references]).score
        per_example = [
            sentence.sentence_score(text, [reference]).score
            for text, reference in zip(texts, references, strict=True)
        ]
        return Scores("bleu", value, per_example, str(corpus.get_signature()), {})

    return grade
