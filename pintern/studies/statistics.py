"""Is one arm better than another? Paired over examples, corrected for how many are asked about.

Scores of one arm are `seed → example → score`. An example's key is what it asks and its gold
answer, so that arms are paired by the example also where a seed draws another test split.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from pintern.evaluation.metrics import bootstrap_interval

RESAMPLES = 10_000
_CHUNK = 1000

Scores = Mapping[int, Mapping[Hashable, float]]


def example_means(scores: Scores) -> dict[Hashable, float]:
    """Each example's mean over the seeds that asked it."""
    found: dict[Hashable, list[float]] = {}
    for by_example in scores.values():
        for key, score in by_example.items():
            found.setdefault(key, []).append(score)
    return {key: float(np.mean(values)) for key, values in found.items()}


def interval(scores: Scores) -> tuple[float, float]:
    """95 % bootstrap bounds of the mean over examples, each taken with all of its seeds."""
    return bootstrap_interval(list(example_means(scores).values()), seed=0)


def seed_spread(scores: Sequence[float]) -> float | None:
    """Standard deviation over seeds (n − 1); None for fewer than two."""
    return float(np.std(scores, ddof=1)) if len(scores) > 1 else None


def at_every_seed(scores: Scores, seeds: Sequence[int]) -> Scores:
    """An arm that no seed changes, and that was run at one, as what it is at all of them."""
    (once,) = scores.values()
    return dict.fromkeys(seeds, once)


def paired_differences(ours: Scores, theirs: Scores) -> list[float]:
    """ours − theirs of each example, averaged over the seeds that both have; empty where nothing
    can be paired."""
    found: dict[Hashable, list[float]] = {}
    for seed in ours.keys() & theirs.keys():
        one, other = ours[seed], theirs[seed]
        for key in one.keys() & other.keys():
            found.setdefault(key, []).append(one[key] - other[key])
    return [float(np.mean(found[key])) for key in sorted(found, key=repr)]


def permutation_p(differences: Sequence[float], seed: int = 0) -> float | None:
    """Two-sided p of a paired permutation test: how often random signs give as large a mean.

    If neither arm were better, each example's difference would as well have the other sign. With
    10,000 draws and the observed one counted in, p is never below 1/10,001.

    Returns:
      None without differences.
    """
    values = np.asarray(differences, np.float64)
    if not values.size:
        return None
    values = values[values != 0]  # their sign changes nothing
    observed = abs(values.sum()) * (1 - 1e-12)
    rng = np.random.default_rng(seed)
    extreme = 0
    for _ in range(RESAMPLES // _CHUNK):
        signs = rng.integers(0, 2, (_CHUNK, values.size), dtype=np.int8) * 2.0 - 1.0
        extreme += int((np.abs(signs @ values) >= observed).sum())
    return (1 + extreme) / (1 + RESAMPLES)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction: the chance of any false claim among all of them stays at p."""
    known = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    highest = 0.0
    for rank, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        adjusted[i] = highest
    return adjusted
