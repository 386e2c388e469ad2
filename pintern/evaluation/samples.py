"""Scores of several samples per example, and pass@k (Chen et al. 2021, 2107.03374, section 2.1)."""

import dataclasses

import numpy as np

from pintern.errors import UserError
from pintern.evaluation.metrics import Scores

_KS = (1, 2, 5, 10, 20, 50, 100)


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Chance that some of `k` samples is right, unbiased (eq. 1): 1 − C(n−c, k) / C(n, k).

    Args:
      samples: n that were drawn.
      right: c of them.
      k: from 1 to n.

    Raises:
      UserError: k or `right` is outside its range.
    """
    if not (1 <= k <= samples and 0 <= right <= samples):
        raise UserError(
            f"pass@{k} of {samples} samples, {right} of them right.", "k must be from 1 to n."
        )
    # The quotient of the two binomials as a product: neither is ever formed.
    failing = np.arange(samples - right - k + 1, samples - right + 1)
    return 1.0 - float(np.prod(failing / np.arange(samples - k + 1, samples + 1)))


def merge_samples(scores: Scores, samples: int) -> Scores:
    """Scores of n answers per example as scores of the examples: the mean of each one's n.

    Args:
      scores: of the first answer to every example, then of the second, and so on.
      samples: n.
    """
    if samples == 1:
        return scores
    means = np.reshape(scores.per_example, (samples, -1)).mean(0)
    pooled, count = scores.pooled, len(means)
    whole = None
    if pooled is not None:

        def whole(chosen: np.ndarray) -> float:
            return pooled(np.concatenate([chosen + count * sample for sample in range(samples)]))

    return dataclasses.replace(scores, per_example=means.tolist(), pooled=whole)


def pass_table(scores: Scores, samples: int) -> dict[int, float]:
    """pass@k over a test set on a scale of 0 to 100, for k of 1, 2, 5, 10, … and n.

    Args:
      scores: as `merge_samples` takes them.
      samples: n of each example.

    Returns:
      k to pass@k; nothing for a metric that isn't right (100) or wrong (0).
    """
    table = np.reshape(scores.per_example, (samples, -1))
    if not np.isin(table, (0.0, 100.0)).all():
        return {}
    right = (table == 100.0).sum(0).tolist()
    ks = sorted({k for k in _KS if k <= samples} | {samples})
    return {k: 100.0 * float(np.mean([pass_at_k(samples, c, k) for c in right])) for k in ks}
