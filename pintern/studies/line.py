"""What a finished cell leaves in the ledger."""

from __future__ import annotations

import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from pintern.arms import Measured
from pintern.report.accounting import TokenCount, cost_per_request, machine_cost
from pintern.studies.ledger import Line
from pintern.studies.study import Cell, Study

_VERSIONED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")


def line_of(
    study: Study,
    cell: Cell,
    measured: Measured,
    measures: dict[str, Any],
    folder: Path,
    workdir: Path,
    seconds: float,
) -> Line:
    """A cell's line.

    Args:
      study: for its prices.
      cell: the cell.
      measured: what training and scoring it gave.
      measures: what its measures gave, by name.
      folder: its run folder.
      workdir: the study's.
      seconds: that it took in this process.
    """
    import jax

    found, arm = measured.evaluation, cell.arm
    tokens = TokenCount(found.template, found.examples, found.query, found.output)
    cached = arm.prompt.cached and arm.prompt.keep_rate > 0
    step = arm.config.train.steps if arm.trained else 0
    line = {
        "cell": cell.name,
        "arm": arm.name,
        "task": cell.task,
        "model": cell.model,
        "seed": cell.seed,
        "fingerprint": cell.fingerprint,
        "trained": arm.what_is_trained,
        "steps": step,
        "metric": found.scores.name,
        "signature": found.scores.signature,
        "score": found.scores.value,
        "slices": {name: scores.value for name, scores in found.slices.items()},
        "interval": found.interval,
        "further": {name: scores.value for name, scores in found.further.items()},
        "pass_at": {str(k): value for k, value in found.pass_at.items()},
        "reasons": found.scores.reasons,
        # Score and answer of each example stand there, in the test set's order.
        "predictions": str(
            (folder / "eval" / str(step) / "predictions.jsonl").relative_to(workdir)
        ),
        "tokens": {
            "template": tokens.template,
            "examples": tokens.examples,
            "query": tokens.query,
            "output": tokens.output,
            "prompt": tokens.prompt,
        },
        "cached_prefix": cached,
        "training_seconds": measured.training_seconds,
        "measures": measures,
        "measured_by": [repr(measure) for measure in cell.measures],
        "note": measured.parts.prompts.task.note,
        "seconds": round(seconds, 2),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "backend": jax.default_backend(),
        "versions": versions(),
    }
    return as_declared(study, cell, line)


def as_declared(study: Study, cell: Cell, line: Line) -> Line:
    """A line with the factors and the costs that the study has now.

    They follow from the study file and from what was counted: a change of theirs runs nothing anew,
    so that a line may have been written under others.
    """
    parts = ("template", "examples", "query", "output")
    tokens = TokenCount(**{part: line["tokens"][part] for part in parts})
    cost = cost_per_request(tokens, study.prices, cached_prefix=line["cached_prefix"])
    return line | {
        "factors": dict(cell.factors),
        "cost_per_1000_requests": 1000 * cost,
        "training_cost": machine_cost(line["training_seconds"], study.usd_per_hour),
    }


def versions() -> dict[str, str]:
    """Python and the libraries that a result depends on."""
    return {
        "python": sys.version.split()[0],
        **{name: metadata.version(name) for name in _VERSIONED},
    }
