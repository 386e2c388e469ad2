"""What every metric returns, and bootstrap bounds of it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pintern.errors import UserError
from pintern.prompts.task import Example

RESAMPLES = 2000
_LEVEL = 0.95  # of the resampled scores, within the bounds
_BOUNDS = ((1 - _LEVEL) / 2, (1 + _LEVEL) / 2)


@dataclasses.dataclass(frozen=True)
class Scores:
    """One metric over one set of examples.

    Attributes:
      name: the metric.
      value: 0 to 100.
      per_example: 0 to 100 each, in the order of the predictions.
      signature: how it was computed, enough to compare with another run (sacrebleu's for BLEU).
      reasons: how many examples ended in which way; empty where there is no right or wrong.
      is_mean: `value` is the mean of `per_example`; False for BLEU and chrF, scores of the corpus.
      pooled: for such a score, that of any choice of the examples by their places.
    """

    name: str
    value: float
    per_example: list[float]
    signature: str
    reasons: dict[str, int]
    is_mean: bool = True
    pooled: Callable[[np.ndarray], float] | None = dataclasses.field(
        default=None, compare=False, repr=False
    )


# Scores of some of the examples, by their indices.
Grade = Callable[[Sequence[int]], Scores]
# Predictions, their examples and the metric's settings to a Grade.
Grader = Callable[[Sequence[str], Sequence[Example], Mapping[str, Any]], Grade]


def grade_outcomes(name: str, outcomes: Sequence[str], signature: str) -> Grade:
    """A grade of right (100) or wrong (0); an outcome other than `right` is a reason."""

    def grade(chosen: Sequence[int]) -> Scores:
        reasons = [outcomes[index] for index in chosen]
        per_example = [100.0 * (reason == "right") for reason in reasons]
        value = sum(per_example) / len(per_example)
        return Scores(name, value, per_example, signature, dict(Counter(reasons)))

    return grade


def grade_shares(
    name: str, shares: Sequence[float], signature: str, reasons: Sequence[str] = ()
) -> Grade:
    """A grade whose score is the mean of shares from 0 to 1.

    Args:
      name: of the metric.
      shares: one per example.
      signature: how they were computed.
      reasons: one per example, empty for nothing to say; or none at all.
    """

    def grade(chosen: Sequence[int]) -> Scores:
        per_example = [100.0 * shares[index] for index in chosen]
        said = Counter(reasons[index] for index in chosen if reasons and reasons[index])
        value = sum(per_example) / len(per_example)
        return Scores(name, value, per_example, signature, dict(said))

    return grade


def bootstrap_interval(per_example: Sequence[float], seed: int) -> tuple[float, float]:
    """Percentile bootstrap of the mean: the bounds between which 95 % of the means lie.

    Args:
      per_example: scores, of which there must be some.
      seed: of the resampling.

    Raises:
      UserError: no scores.
    """
    if not len(per_example):
        raise UserError("No scores to draw an interval for.")
    # Drawing how often each *distinct* score comes up is the same bootstrap, at a cost that for
    # right-or-wrong scores doesn't grow with the number of examples.
    values, counts = np.unique(np.asarray(per_example, np.float64), return_counts=True)
    total = int(counts.sum())
    draws = np.random.default_rng(seed).multinomial(total, counts / total, size=RESAMPLES)
    low, high = np.quantile(draws @ values / total, _BOUNDS)
    return float(low), float(high)


def score_interval(scores: Scores, seed: int) -> tuple[float, float] | None:
    """Percentile bootstrap of a score over its examples, a corpus score's too (Koehn, 2004).

    Args:
      scores: what a metric gave.
      seed: of the resampling.

    Returns:
      The bounds; None for a corpus score that can't be computed again from parts (chrF).
    """
    if scores.pooled is not None:
        count = len(scores.per_example)
        random = np.random.default_rng(seed)
        values = [scores.pooled(random.integers(0, count, count)) for _ in range(RESAMPLES)]
        low, high = np.quantile(values, _BOUNDS)
        return float(low), float(high)
    return bootstrap_interval(scores.per_example, seed) if scores.is_mean else None
