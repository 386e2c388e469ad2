"""The curriculum: how much of the prompt is in front of the query at each step.

    python -m pintern.curriculum --config=experiments/promptintern/company.py

prints the schedule as a table before anything runs.

A schedule gives the share S of the prompt that is left, from 1 to 0. The template is kept at rate
τ = S, and ⌊K·S⌋ of the K retrieved examples stay (PromptIntern, 2407.02211; the rule for K is
SKIntern's, 2409.13183). Stage s of T has S at t = s/(T−1):

    linear               1 − t
    exponential          (e^(−a·t) − e^(−a)) / (1 − e^(−a)): falls fast, then slowly
    inverse_exponential  1 − (e^(−a·(1−t)) − e^(−a)) / (1 − e^(−a)): slowly, then fast
    cosine               (1 + cos πt) / 2
    explicit             rates and shots as listed

with a = 3. Over `stages` a run holds each level for an equal share of its steps; over `steps` S
falls at every step and is rounded to the nearest of `stages` levels, so that the levels in the
middle get their share of a continuous fall. `adaptive` walks the linear levels, and leaves one as
soon as the score at the next level is within ε of the score at this one.

With removal smoothing (stepwise internalization, 2405.14838) a step may be further along than the
schedule says: it takes the level of the stage o stages later, at most the last, where o ≥ 0 is
drawn for each step with P(o) = (1 − e^(−λ))·e^(−λo). The paper has λ = 4, so that 1.8 % of the
steps are ahead. The draw is a pure function of seed and step.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

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


class Level(NamedTuple):
    """How much prompt stands in front of the query.

    Attributes:
      keep_rate: τ, tokens kept over tokens of the full template, 0 to 1.
      shots: retrieved examples in front of the query.
    """

    keep_rate: float
    shots: int


class Stage(NamedTuple):
    """A stretch of training at one level: steps `start` ≤ step < `stop`."""

    level: Level
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class AdaptiveState:
    """Where an adaptive run is; part of every checkpoint.

    Attributes:
      stage: index into the levels.
      since: step at which the stage began.
    """

    stage: int = 0
    since: int = 0


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """A run's levels in order, and when each is trained.

    Attributes:
      levels: from the fullest prompt to the query alone.
      stages: stretches of steps; an adaptive curriculum leaves a stage earlier than this says.
      adaptive: stages end by score, not only by step.
      epsilon: adaptive: score points that the next level may lag behind.
      patience: adaptive: steps between two looks at the scores.
      smoothing: λ of the random steps ahead; 0 is none.
      seed: of those.
    """

    levels: tuple[Level, ...]
    stages: tuple[Stage, ...]
    adaptive: bool = False
    epsilon: float = 2.0
    patience: int = 50
    smoothing: float = 0.0
    seed: int = 0

    def stage_at(self, step: int, state: AdaptiveState | None = None) -> int:
        """Index of the stage that the schedule says, smoothing aside."""
        if self.adaptive:
            return (state or AdaptiveState()).stage
        for number, stage in enumerate(self.stages):
            if step < stage.stop:
                return number
        return len(self.stages) - 1

    def begins_stage(self, step: int, state: AdaptiveState | None = None) -> bool:
        """Whether the schedule enters a stage at this step, the first one aside."""
        if self.adaptive:
            return step > 0 and (state or AdaptiveState()).since == step
        return any(stage.start == step for stage in self.stages[1:])

    def stretch(self, step: int, state: AdaptiveState | None = None) -> range:
        """The steps around this one whose stage is settled beforehand.

        It is the whole stage; of an adaptive run, what lies between two looks at the scores.
        """
        stage = self.stages[self.stage_at(step, state)]
        start, stop = stage.start, max(stage.stop, step + 1)
        if self.adaptive:
            since = (state or AdaptiveState()).since
            start = step - (step - since) % self.patience
            stop = min(stop, start + self.patience)
        return range(start, stop)

    def steps_ahead(self, step: int) -> int:
        """o, how many stages a step is further along: a pure function of seed and step."""
        if not self.smoothing:
            return 0
        drawn = 1.0 - np.random.default_rng([self.seed, step, 5]).random()  # in (0, 1]
        # ⌊−ln(u)/λ⌋ is geometric: P(o ≥ n) = P(u ≤ e^(−λn)) = e^(−λn).
        return math.floor(-math.log(drawn) / self.smoothing)

    def level_at(self, step: int, state: AdaptiveState | None = None) -> Level:
        """Level of a step: a pure function of seed and step, and of an adaptive run's state."""
        number = self.stage_at(step, state) + self.steps_ahead(step)
        return self.stages[min(number, len(self.stages) - 1)].level

    def levels_of_stage(
        self, step: int, state: AdaptiveState | None = None, *, ahead: int = 0
    ) -> list[Level]:
        """Levels from a step to the end of its stage, each once, as they are first needed; and then
        those of so many stages behind it.
        """
        number = self.stage_at(step, state)
        stop = self.stages[number].stop if self.smoothing else 0
        levels = [self.level_at(each, state) for each in range(step, max(stop, step + 1))]
        levels += [stage.level for stage in self.stages[number + 1 : number + 1 + ahead]]
        return list(dict.fromkeys(levels))

    def must_look(self, step: int, state: AdaptiveState) -> bool:
        """Whether an adaptive run compares scores before this step."""
        if not self.adaptive or state.stage + 1 >= len(self.levels):
            return False
        waited = step - state.since
        overdue = step >= self.stages[state.stage].stop
        return overdue or (waited > 0 and waited % self.patience == 0)

    def advance(
        self, step: int, state: AdaptiveState, score_here: float, score_next: float
    ) -> AdaptiveState:
        """Next stage if its score is within ε, or if this stage's longest stretch is over."""
        overdue = step >= self.stages[state.stage].stop
        if overdue or score_next >= score_here - self.epsilon:
            return AdaptiveState(state.stage + 1, step)
        return state


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


def main(_: list[str]) -> None:
    """Prints the schedule of a config; refuses one whose prompts training would refuse."""
    from pintern.cli import config_from_flags

    config = config_from_flags()  # checked before the imports below, which take seconds
    from pintern.assemble import assemble
    from pintern.training.lengths import check_lengths
    from pintern.training.teacher import check_distillation

    parts = assemble(config)
    check_lengths(parts)
    check_distillation(parts)
    print(parts.prompts.schedule_table())


if __name__ == "__main__":
    from pintern import cli

    cli.define_config()
    cli.run(main)
