"""What each step trains on: rows of the level's prompt; the same completions for the teacher."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import numpy as np

from pintern.curriculum import AdaptiveState, Level
from pintern.prompts.pipeline import Prompts
from pintern.prompts.rows import Row
from pintern.prompts.task import Example
from pintern.training.batches import (
    Shape,
    Shapes,
    first_steps,
    make_batch,
    padding_share,
    step_indices,
)
from pintern.training.step import TrainBatch

_PLANNED = 128  # steps on whose lengths a level's shapes are planned
_SOON = 16  # steps ahead whose programs are compiled first


class TrainingData:
    """Labelled pairs, and queries of the log that the teacher answered.

    Args:
      prompts: of the run.
      answered: queries with the teacher's completions; empty without distillation.
      batch_rows: rows per optimizer step.
      accumulate: micro-batches that they are split into.
      seed: of the order.
      teacher_shots: examples in the teacher's prompt, or None without a teacher.
      labelled: train on the labelled pairs; False leaves them to retrieval alone.
      widths: row widths of a level at most; each is a program to compile.
      devices: that the rows of a micro-batch are split over.
    """

    def __init__(
        self,
        prompts: Prompts,
        answered: Sequence[Example] = (),
        *,
        batch_rows: int,
        accumulate: int,
        seed: int,
        teacher_shots: int | None = None,
        labelled: bool = True,
        widths: int = 2,
        devices: int = 1,
    ):
        self._prompts = prompts
        self._answered = list(answered)
        self._pieces = [*prompts.pool, *prompts.renderer.pieces(answered)]
        self._labelled = np.array([1.0] * len(prompts.pool) + [0.0] * len(answered), np.float32)
        self._first = 0 if labelled else len(prompts.pool)
        self._rows, self._accumulate, self._seed = batch_rows, accumulate, seed
        self._teacher_shots, self._widths = teacher_shots, widths
        self._lane_rows = batch_rows // accumulate // devices

    def __len__(self) -> int:
        return len(self._pieces) - self._first

    @functools.cache  # noqa: B019  one object a run
    def rows(self, shots: int) -> list[Row]:
        """Every row with so many examples in front of it."""
        found = [
            *self._prompts.shots_for_pool(shots),
            *self._prompts.shots_for([example.query for example in self._answered], shots),
        ]
        return [
            self._prompts.renderer.row(piece, shot)
            for piece, shot in zip(self._pieces, found, strict=True)
        ]

    @functools.cache  # noqa: B019
    def _lengths(self, shots: int) -> np.ndarray:
        """`[example]` tokens of each row that is trained on."""
        return np.array([len(row.tokens) for row in self.rows(shots)[self._first :]])

    @functools.cache  # noqa: B019
    def shapes(self, level: Level) -> Shapes:
        """The shapes of a level, planned on the lengths that its steps would have from 0 on."""
        rows, lengths = self.rows(level.shots)[self._first :], self._lengths(level.shots)
        steps = first_steps(_PLANNED, lengths, rows=self._rows, seed=self._seed)
        prefix = self._prompts.prefix(level.keep_rate)
        return Shapes.plan(prefix, rows, steps, most=self._widths, lane_rows=self._lane_rows)

    @functools.cache  # noqa: B019
    def _teacher_shapes(self) -> Shapes:
        # One width: it is combined with every student width, and each pair is a program.
        return Shapes.plan((), self.rows(self._teacher_shots)[self._first :])

    def programs(
        self, level: Level, step: int | None = None, state: AdaptiveState | None = None
    ) -> list[tuple[Shape, TrainBatch]]:
        """Every shape of a level with a batch that has it, for compiling ahead of time.

        Narrow ones first; or, given the step at which training stands, what is needed soonest.
        """
        rows = self.rows(level.shots)
        shapes = list(self.shapes(level).rising)
        if step is not None:
            soon = [self._shape(each, level, state) for each in range(step, step + _SOON)]
            shapes = list(dict.fromkeys([*soon, *shapes]))
        found = []
        for shape in shapes:
            fitting = [i for i in range(self._first, len(rows)) if len(rows[i].read) <= shape.row]
            i = min(fitting, key=lambda i: len(rows[i].tokens) - rows[i].start)
            found.append((shape, self._stack([i] * self._rows, level, shape)))
        return found

    def batch(
        self, step: int, level: Level, state: AdaptiveState | None = None
    ) -> tuple[Shape, TrainBatch, float]:
        """Shape, batch and padding share of a step: a pure function of the arguments.

        Args:
          step: optimizer step.
          level: of its prompt.
          state: of an adaptive curriculum.
        """
        shape = self._shape(step, level, state)
        batch = self._stack(self.indices(step, state), level, shape)
        return shape, batch, padding_share(batch.student)

    def _shape(self, step: int, level: Level, state: AdaptiveState | None) -> Shape:
        rows = self.rows(level.shots)
        return self.shapes(level).shape_for([rows[i] for i in self.indices(step, state)])

    def indices(self, step: int, state: AdaptiveState | None = None) -> list[int]:
        """Which items a step trains on; the labelled pairs come first in the numbering.

        Steps of a stage hold rows of like length at the stage's level.
        """
        curriculum = self._prompts.curriculum
        stage = curriculum.stages[curriculum.stage_at(step, state)]
        drawn = step_indices(
            step,
            self._lengths(stage.level.shots),
            rows=self._rows,
            seed=self._seed,
            stretch=curriculum.stretch(step, state),
        )
        return (self._first + drawn).tolist()

    def _stack(self, indices: Sequence[int], level: Level, shape: Shape) -> TrainBatch:
        prefix = self._prompts.prefix(level.keep_rate)
        parts = np.array_split(np.asarray(indices), self._accumulate)
        micro = [self._micro(part, prefix, level, shape) for part in parts]
        return jax.tree.map(lambda *xs: np.stack(xs), *micro)

    def _micro(
        self, indices: np.ndarray, prefix: Sequence[int], level: Level, shape: Shape
    ) -> TrainBatch:
        rows = self.rows(level.shots)
        teacher = None
        if self._teacher_shots is not None:
            shapes = self._teacher_shapes()
            teacher_rows = self.rows(self._teacher_shots)
            teacher = make_batch(
                (),
                [teacher_rows[i] for i in indices],
                Shape(0, shapes.rising[-1].row, shape.target),
                lane_rows=self._lane_rows,
            )
        return TrainBatch(
            student=make_batch(
                prefix, [rows[i] for i in indices], shape, lane_rows=self._lane_rows
            ),
            labelled=self._labelled[None, indices],
            teacher=teacher,
        )
