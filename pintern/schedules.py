"""Makes the curriculum that a config asks for: its levels, and the steps of each.

What each schedule is, `python -m pintern.curriculum --help` tells.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pintern.curriculum import Curriculum, Level, Stage
from pintern.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_STEEPNESS = 3.0


def _exponential(t: float) -> float:
    floor = math.exp(-_STEEPNESS)
    return (math.exp(-_STEEPNESS * t) - floor) / (1 - floor)


SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda t: 1 - t,
    "exponential": _exponential,
    "inverse_exponential": lambda t: 1 - _exponential(1 - t),
    "cosine": lambda t: (1 + math.cos(math.pi * t)) / 2,
}
SCHEDULES = (*SHAPES, "explicit", "adaptive")
UNITS = ("stages", "steps")


def curriculum_of(config: "ConfigDict") -> Curriculum:
    """The curriculum that a config describes.

    Raises:
      UserError: see `make_curriculum`.
    """
    fields = config.curriculum
    return make_curriculum(
        schedule=fields.schedule,
        steps=config.train.steps,
        stages=fields.stages,
        max_shots=config.prompt.max_shots,
        unit=fields.unit,
        keep_rates=fields.keep_rates,
        shots=fields.shots,
        final_share=fields.final_share,
        epsilon=fields.epsilon,
        patience=fields.patience,
        smoothing=fields.smoothing,
        seed=config.seed,
    )


def make_curriculum(
    *,
    schedule: str,
    steps: int,
    stages: int,
    max_shots: int,
    unit: str = "stages",
    keep_rates: Sequence[float] = (),
    shots: Sequence[int] = (),
    final_share: float = 0.0,
    epsilon: float = 2.0,
    patience: int = 50,
    smoothing: float = 0.0,
    seed: int = 0,
) -> Curriculum:
    """Builds the curriculum that a config asks for.

    Args:
      schedule: one of `SCHEDULES`.
      steps: optimizer steps of the run.
      stages: number of levels T, at least 1; ignored by `explicit`. One stage is the query alone.
      max_shots: K, examples at S = 1.
      unit: `stages` (equal stretches) or `steps` (a continuous fall rounded to the levels).
      keep_rates: τ of each level, for `explicit`.
      shots: examples of each level, for `explicit`; empty means ⌊K·τ⌋.
      final_share: share of all steps spent on the last level; 0 means an equal share.
      epsilon: see `Curriculum`.
      patience: see `Curriculum`.
      smoothing: see `Curriculum`.
      seed: see `Curriculum`.

    Raises:
      UserError: an unknown schedule or unit, or a unit that the schedule can't have; a rate outside
        [0, 1], rates that rise, fewer steps than levels, or lists of different lengths.
    """
    _check(schedule, SCHEDULES, "config.curriculum.schedule")
    _check(unit, UNITS, "config.curriculum.unit")
    if not 0 <= final_share < 1:
        raise UserError(f"config.curriculum.final_share is {final_share}; it must be in [0, 1).")
    if schedule == "explicit":
        levels = _explicit_levels(keep_rates, shots, max_shots)
    else:
        if stages < 1:
            raise UserError(f"config.curriculum.stages is {stages}; it must be at least 1.")
        shape = SHAPES["linear" if schedule == "adaptive" else schedule]
        shares = [shape(s / (stages - 1)) for s in range(stages)] if stages > 1 else [0.0]
        # Rounding keeps 0.30000000000000004 out of the tables; ⌊K·S⌋ is taken of the exact share.
        levels = tuple(Level(round(share, 6), _shots(max_shots, share)) for share in shares)
    if unit == "steps" and schedule not in SHAPES:
        raise UserError(
            f"config.curriculum.unit is 'steps', which {schedule!r} has no continuous fall for.",
            "Set config.curriculum.unit=stages.",
        )
    if steps < len(levels):
        levels_of = "keep_rates" if schedule == "explicit" else "stages"
        raise UserError(
            f"config.train.steps is {steps}, too few for the {len(levels)} levels of "
            f"config.curriculum.{levels_of}.",
            f"Give at least {len(levels)} steps, or fewer levels.",
        )
    if unit == "steps":
        stretches = _continuous(levels, steps, SHAPES[schedule], final_share)
    else:
        stretches = _equal(levels, steps, final_share)
    adaptive = schedule == "adaptive"
    return Curriculum(levels, stretches, adaptive, epsilon, patience, smoothing, seed)


def _check(value: str, allowed: Sequence[str], field: str) -> None:
    if value not in allowed:
        raise UserError(f"{field} is {value!r}; it must be one of {', '.join(allowed)}.")


def _explicit_levels(
    keep_rates: Sequence[float], shots: Sequence[int], max_shots: int
) -> tuple[Level, ...]:
    if not keep_rates:
        raise UserError(
            "config.curriculum.keep_rates is empty; an explicit schedule lists τ of each level.",
            "For instance (1.0, 0.5, 0.0).",
        )
    if shots and len(shots) != len(keep_rates):
        raise UserError(
            f"config.curriculum.shots lists {len(shots)} levels and keep_rates {len(keep_rates)}; "
            "give one of each per level, or leave shots empty."
        )
    for rate in keep_rates:
        if not 0 <= rate <= 1:
            raise UserError(f"config.curriculum.keep_rates holds {rate}; a rate lies in [0, 1].")
    if any(b > a for a, b in itertools.pairwise(keep_rates)):
        raise UserError(f"config.curriculum.keep_rates {tuple(keep_rates)} must not rise.")
    if any(count < 0 for count in shots):
        raise UserError(
            f"config.curriculum.shots {tuple(shots)} holds a negative number of examples."
        )
    shots = shots or [_shots(max_shots, rate) for rate in keep_rates]
    return tuple(Level(float(r), int(k)) for r, k in zip(keep_rates, shots, strict=True))


def _shots(max_shots: int, share: float) -> int:
    # 3 · (1 − 2/3) is 1 and 100 · 0.29 is 29, though their floats may fall short of it.
    return math.floor(round(max_shots * share, 6))


def _equal(levels: Sequence[Level], steps: int, final_share: float) -> tuple[Stage, ...]:
    n = len(levels)
    if n == 1:
        return (Stage(levels[0], 0, steps),)
    before = round(steps * (1 - final_share)) if final_share else round(steps * (n - 1) / n)
    before = min(max(before, n - 1), steps - 1)
    edges = [round(before * i / (n - 1)) for i in range(n)] + [steps]
    return tuple(Stage(level, edges[i], edges[i + 1]) for i, level in enumerate(levels))


def _continuous(
    levels: Sequence[Level], steps: int, shape: Callable[[float], float], final_share: float
) -> tuple[Stage, ...]:
    """S falls at each step; each step takes the level whose rate is nearest.

    With a final share the fall is stretched so that its nearest level becomes the last one when
    that share of the steps is left.
    """
    falling = steps - 1.0
    if final_share and len(levels) > 1:
        falling = steps * (1 - final_share) / _time_at(shape, levels[-2].keep_rate / 2)
    nearest = []
    for step in range(steps):
        share = shape(min(step / max(falling, 1.0), 1.0))
        distances = [abs(level.keep_rate - share) for level in levels]
        nearest.append(distances.index(min(distances)))
    nearest[-1] = len(levels) - 1  # also where the final share is less than a step
    stretches = []
    for i, level in enumerate(levels):
        if i in nearest:
            start = nearest.index(i)
            stretches.append(Stage(level, start, start + nearest.count(i)))
    return tuple(stretches)


def _time_at(shape: Callable[[float], float], share: float) -> float:
    """When a falling shape comes down to a share, by bisection."""
    early, late = 0.0, 1.0
    for _ in range(50):
        middle = (early + late) / 2
        early, late = (middle, late) if shape(middle) > share else (early, middle)
    return late
