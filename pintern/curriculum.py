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

with a = 3; `pintern.schedules` makes them. Over `stages` a run holds each level for an equal share
of its steps; over `steps` S falls at every step and is rounded to the nearest of `stages` levels,
so that the levels in the middle get their share of a continuous fall. `adaptive` walks the linear
levels, and leaves one as soon as the score at the next level is within ε of the score at this one.

With removal smoothing (stepwise internalization, 2405.14838) a step may be further along than the
schedule says: it takes the level of the stage o stages later, at most the last, where o ≥ 0 is
drawn for each step with P(o) = (1 − e^(−λ))·e^(−λo). The paper has λ = 4, so that 1.8 % of the
steps are ahead. The draw is a pure function of seed and step.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np


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
