"""pass@k of right-or-wrong scores (Chen et al. 2021, 2107.03374, section 2.1)."""

from collections.abc import Sequence

import numpy as np

from pintern.errors import UserError

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


def pass_table(right: Sequence[int], samples: int) -> dict[int, float]:
    """pass@k over a test set on a scale of 0 to 100, for k of 1, 2, 5, 10, … and n.

    Args:
      right: c of each example.
      samples: n of each.
    """
    ks = sorted({k for k in _KS if k <= samples} | {samples})
    return {k: 100.0 * float(np.mean([pass_at_k(samples, c, k) for c in right])) for k in ks}
