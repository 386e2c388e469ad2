"""Predictions and gold answers to scores, all on a scale of 0 to 100.

One file for each kind of metric, none of which knows a model; `METRICS` names them all. Everything
is graded once, and a slice or a resampling is a choice of examples from what was graded.
"""

from __future__ import annotations

from collections.abc import Sequence

from pintern.errors import UserError
from pintern.evaluation.metrics.bash import grade_bash_tokens, grade_nlc2cmd
from pintern.evaluation.metrics.blec import grade_blec
from pintern.evaluation.metrics.clauses import grade_clauses
from pintern.evaluation.metrics.execution import grade_sql
from pintern.evaluation.metrics.programs import grade_pass
from pintern.evaluation.metrics.scores import (
    Grade,
    Grader,
    Scores,
    bootstrap_interval,
    score_interval,
)
from pintern.evaluation.metrics.text import grade_bleu, grade_chrf, grade_exact
from pintern.prompts.task import Example

__all__ = [
    "METRICS",
    "Scores",
    "bootstrap_interval",
    "score_interval",
    "score_predictions",
    "score_slices",
]

METRICS: dict[str, Grader] = {
    "sql": grade_sql,
    "exact": grade_exact,
    "bleu": grade_bleu,
    "chrf": grade_chrf,
    "bash_tokens": grade_bash_tokens,
    "nlc2cmd": grade_nlc2cmd,
    "blec": grade_blec,
    "clauses": grade_clauses,
    "pass": grade_pass,
}
# All that the metrics take besides predictions and gold answers, each some of it.
SETTINGS = frozenset("database end lowercase normalise tokenize unconfined word_order".split())


def score_predictions(
    metric: str, predictions: Sequence[str], golds: Sequence[str | Example], **options: object
) -> Scores:
    """Scores predictions against gold answers.

    Args:
      metric: a name in `METRICS`.
      predictions: text, one per example.
      golds: as many gold answers, or examples with references and what else the metric needs.
      options: the metric's settings, see its own function: `database` for `sql`, `tokenize` for
        `bleu`. Those of other metrics are passed over, since several score one task.

    Raises:
      UserError: an unknown metric, a setting that no metric has or of a value that it can't have,
        no examples, lists of different lengths, a missing database, or a gold answer that can't be
        judged by.
    """
    return _grader(metric, predictions, golds, options)(range(len(golds)))


def score_slices(
    metric: str,
    predictions: Sequence[str],
    golds: Sequence[str | Example],
    slices: Sequence[str],
    **options: object,
) -> tuple[Scores, dict[str, Scores]]:
    """Scores over all examples, and over those of each slice, in order of first appearance.

    Args:
      metric: see `score_predictions`, as for the arguments that aren't named here.
      predictions: text, one per example.
      golds: as many gold answers.
      slices: name of the slice that each example belongs to.
      options: the metric's settings.
    """
    if len(slices) != len(predictions):
        raise UserError(f"{len(slices)} slice names for {len(predictions)} predictions.")
    grade = _grader(metric, predictions, golds, options)
    members: dict[str, list[int]] = {}
    for index, name in enumerate(slices):
        members.setdefault(name, []).append(index)
    return grade(range(len(golds))), {name: grade(chosen) for name, chosen in members.items()}


def _grader(
    metric: str,
    predictions: Sequence[str],
    golds: Sequence[str | Example],
    options: dict[str, object],
) -> Grade:
    """Grades every example once; what it returns scores any choice of them."""
    if metric not in METRICS:
        raise UserError(f"Unknown metric {metric!r}.", f"Known: {', '.join(METRICS)}.")
    unknown = sorted(options.keys() - SETTINGS)
    if unknown:
        raise UserError(
            f"No metric has a setting {unknown[0]!r}.", f"Known: {', '.join(sorted(SETTINGS))}."
        )
    if len(predictions) != len(golds):
        raise UserError(f"{len(predictions)} predictions for {len(golds)} gold answers.")
    if not predictions:
        raise UserError("No predictions to score.", "Evaluate at least one example.")
    examples = [gold if isinstance(gold, Example) else Example("", gold) for gold in golds]
    return METRICS[metric](predictions, examples, options)
