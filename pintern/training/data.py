"""What each step trains on: rows of the level's prompt; the same completions for the teacher."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import numpy as np

from pintern.curriculum import AdaptiveState, Level
from pintern.models.shared_prefix import Batch
from pintern.prompts.pipeline import Prompts
from pintern.prompts.rows import Row
from pintern.prompts.task import Example
from pintern.training.batches import (
    Shape,
    Shapes,
    make_batch,
    padding_share,
)
from pintern.training.order import packing, step_indices, stretch_indices
from pintern.training.step import TrainBatch

_PLANNED = 128  # steps on whose lengths an adaptive run's shapes are planned
_BLANK = Row([0], 1)  # nothing is read of it, and nothing predicted
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
      pack: whether rows may stand one behind another, see `order.packing`.
      widths: pack widths of a level at most; each is a program to compile.
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
        pack: bool = True,
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
        self._pack = pack
        self._at_most: dict[Level, int] = {}

    def __len__(self) -> int:
        return len(self._pieces) - self._first

    @property
    def levels(self) -> tuple[Level, ...]:
        """Of the run's curriculum."""
        return self._prompts.curriculum.levels

    @functools.cache  # noqa: B019  one object a run
    def rows(self, shots: int) -> list[Row]:
        """Every row with so many examples in front of it."""
        found = [
            *self._prompts.shots_for_pool(shots),
            *self._prompts.shots_for_log([example.query for example in self._answered], shots),
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
    def _dealt(self, shots: int) -> int:
        """Rows that are dealt out together: neither micro-batches nor devices change the order."""
        return packing(self._lengths(shots), rows=self._rows) if self._pack else 1

    def packed(self, level: Level) -> int:
        """Rows of a level's packs, all of which are on one device."""
        found = math.gcd(self._dealt(level.shots), self._lane_rows)
        return math.gcd(found, self._at_most.get(level, found))

    @property
    def unpacked(self) -> bool:
        """Whether rows that were dealt out to share packs stand alone, long ones beside short ones,
        because a device has too few of them.
        """
        return any(self._dealt(level.shots) > self.packed(level) == 1 for level in self.levels)

    def pack_at_most(self, level: Level, packed: int) -> None:
        """Has a level's packs hold no more rows than so many; before any batch is made of it."""
        self._at_most[level] = packed

    @functools.cache  # noqa: B019
    def _steps(self, level: Level) -> np.ndarray:
        """`[step, rows]` indices of all steps at a level; of an adaptive run a sample of them."""
        curriculum = self._prompts.curriculum
        if curriculum.adaptive:
            return self._stretch(range(_PLANNED), level.shots)
        found = []
        for stage in curriculum.stages:
            steps = range(stage.start, stage.stop)
            here = [curriculum.level_at(step) == level for step in steps]
            if any(here):
                found.append(self._stretch(steps, stage.level.shots)[here])
        return np.concatenate(found) if found else np.zeros((0, self._rows), int)

    def _stretch(self, steps: range, shots: int) -> np.ndarray:
        lengths, packed = self._lengths(shots), self._dealt(shots)
        return stretch_indices(steps, lengths, rows=self._rows, seed=self._seed, packed=packed)

    @functools.cache  # noqa: B019
    def shapes(self, level: Level) -> Shapes:
        """The shapes of a level, planned on the lengths of its steps."""
        return Shapes.plan(
            self._prompts.prefix(level.keep_rate),
            self.rows(level.shots)[self._first :],
            self._steps(level),
            every=not self._prompts.curriculum.adaptive,
            most=self._widths,
            lane_rows=self._lane_rows,
            packed=self.packed(level),
        )

    @functools.cache  # noqa: B019
    def _teacher_pack(self, packed: int) -> int:
        """Slots of the teacher's packs of so many rows, whatever the student's shape."""
        # One width: it is combined with every student width, and each pair is a program.
        curriculum = self._prompts.curriculum
        levels = [level for level in curriculum.levels if self.packed(level) == packed]
        steps = np.concatenate([self._steps(level) for level in levels])
        rows = self.rows(self._teacher_shots)[self._first :]
        settled = not curriculum.adaptive
        return Shapes.plan((), rows, steps, every=settled, most=1, packed=packed).rising[-1].pack

    def programs(
        self, level: Level, step: int | None = None, state: AdaptiveState | None = None
    ) -> list[tuple[Shape, TrainBatch]]:
        """Every shape of a level with a blank batch that has it, for compiling ahead of time.

        Narrow ones first; or, given the step at which training stands, what is needed soonest.
        """
        shapes = list(self.shapes(level).rising)
        if step is not None:
            curriculum = self._prompts.curriculum
            ahead = range(step, min(step + _SOON, curriculum.stretch(step, state).stop))
            here = [each for each in ahead if curriculum.level_at(each, state) == level]
            soon = [self._shape(each, level, state) for each in here]
            shapes = list(dict.fromkeys([*soon, *shapes]))
        return [(shape, self._stack(None, level, shape)) for shape in shapes]

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

        Steps of a stage hold packs of like length at the stage's level.
        """
        curriculum = self._prompts.curriculum
        stage = curriculum.stages[curriculum.stage_at(step, state)]
        drawn = step_indices(
            step,
            self._lengths(stage.level.shots),
            rows=self._rows,
            seed=self._seed,
            packed=self._dealt(stage.level.shots),
            stretch=curriculum.stretch(step, state),
        )
        return (self._first + drawn).tolist()

    def _stack(self, indices: Sequence[int] | None, level: Level, shape: Shape) -> TrainBatch:
        """The micro-batches of these rows; of blank ones without any."""
        chosen = np.full(self._rows, -1) if indices is None else np.asarray(indices)
        micro = [
            self._micro(part.tolist(), level, shape)
            for part in np.array_split(chosen, self._accumulate)
        ]
        return jax.tree.map(lambda *xs: np.stack(xs), *micro)

    def _micro(self, indices: Sequence[int], level: Level, shape: Shape) -> TrainBatch:
        def batch(prefix: Sequence[int], shots: int, shape: Shape) -> Batch:
            rows = self.rows(shots)
            chosen = [_BLANK if i < 0 else rows[i] for i in indices]
            return make_batch(prefix, chosen, shape, lane_rows=self._lane_rows)

        teacher = None
        if self._teacher_shots is not None:
            pack = self._teacher_pack(shape.packed)
            teacher = batch((), self._teacher_shots, shape._replace(prefix=0, pack=pack))
        return TrainBatch(
            student=batch(self._prompts.prefix(level.keep_rate), level.shots, shape),
            labelled=self._labelled[None, indices],
            teacher=teacher,
        )
