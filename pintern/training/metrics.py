"""A step's line of `metrics.jsonl`: what it holds, and when that are no numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from pintern.curriculum import AdaptiveState, Level
from pintern.training.data import TrainingData
from pintern.training.step import TrainBatch


def step_row(
    step: int, level: Level, batch: TrainBatch, padding: float, rate: float
) -> dict[str, Any]:
    """What is known of a step before its metrics are."""
    return {
        "step": step,
        "keep_rate": level.keep_rate,
        "shots": level.shots,
        "prompt_tokens": _prompt_tokens(batch),
        "tokens": batch.student.real_tokens,
        "padding": round(padding, 4),
        "learning_rate": rate,
    }


def _prompt_tokens(batch: TrainBatch) -> float:
    """Mean tokens in front of the completion: prefix, and the row's own less its targets, the last
    of which isn't read (`Row.read`).
    """
    rows, count = batch.student, batch.labelled.size
    in_rows = (rows.pack_rows > 0).sum() + count - rows.target_weights.sum()
    return round(float(rows.prefix_valid.sum(-1).mean() + in_rows / count), 2)


def is_finite(row: dict[str, Any]) -> bool:
    """Whether a step's metrics are numbers: no NaN, nothing infinite."""
    return bool(np.isfinite([row["loss"], row["grad_norm"], row.get("kl", 0.0)]).all())


def not_finite(
    row: dict[str, Any], data: TrainingData, stage: AdaptiveState | None = None
) -> tuple[str, str]:
    """What is told of a step whose metrics aren't finite, and the mend."""
    examples = ", ".join(str(i + 1) for i in data.indices(row["step"], stage))
    return (
        f"The loss at step {row['step']} is {row['loss']} (gradient norm {row['grad_norm']}); its "
        f"batch holds training examples {examples}.",
        "The last good checkpoint is kept. Lower config.train.learning_rate, or look at these "
        "examples.",
    )
