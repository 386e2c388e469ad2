"""What a study says beside each task's table: all tasks' scores, contrasts, transfer."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pintern.config import fingerprint
from pintern.studies import statistics
from pintern.studies.results import Result, by_every_seed, example_scores, read_predictions
from pintern.studies.study import Study, cells_of

Part = tuple[str, list[str], list[list[str]], str]
"""Heading, column heads, cells, and what stands below the table."""


def across_tasks(study: Study, results: Sequence[Result], workdir: Path) -> list[Part]:
    """Tables for each model: contrasts, and of more than one task scores and transfer."""
    parts: list[Part] = []
    for model in study.models:
        here = [r for r in results if r.model == model]
        tasks = list(dict.fromkeys(r.task for r in here))
        several = len(tasks) > 1
        parts += [_scores(model, tasks, here)] if several else []
        contrasts = _contrasts(study, model, here, workdir)
        parts += [contrasts] if contrasts[2] else []
        parts += _transfers(study, model, tasks, here) if several else []
    return parts


def _scores(model: str, tasks: Sequence[str], results: Sequence[Result]) -> Part:
    rows = []
    for arm in dict.fromkeys(r.arm for r in results):
        by_task = {r.task: r for r in results if r.arm == arm}
        whole = len(by_task) == len(tasks)
        spreads = [r.spread for r in by_task.values() if r.spread is not None]
        rows.append(
            [
                arm,
                *(f"{by_task[t].score:.1f}" if t in by_task else "–" for t in tasks),
                f"{np.mean([r.score for r in by_task.values()]):.1f}" if whole else "–",
                *(_spread(by_task.get(t)) for t in tasks),
                f"{np.mean(spreads):.1f}" if len(spreads) == len(tasks) else "–",
            ]
        )
    head = ["arm", *tasks, "mean", *(f"SD {t}" for t in tasks), "mean SD"]
    return (f"All tasks, {model}", head, rows, "SD: over seeds, of the task's score.")


def _spread(result: Result | None) -> str:
    return "–" if result is None or result.spread is None else f"{result.spread:.1f}"


def _contrasts(study: Study, model: str, results: Sequence[Result], workdir: Path) -> Part:
    """One arm less another over the examples of every task that has both."""
    asked, found = [], []
    scores = {
        (r.arm, r.task): by_every_seed(study, r.arm, _examples(r, workdir))
        for r in results
        if _in(study, r.arm)
    }
    for one, other in study.contrasts:
        tasks = [task for arm, task in scores if arm == one and (other, task) in scores]
        differences = [
            d
            for task in tasks
            for d in statistics.paired_differences(scores[one, task], scores[other, task])
        ]
        if differences:
            asked.append((one, other, len(tasks)))
            found.append(differences)
    ps = statistics.holm([statistics.permutation_p(values) for values in found])
    rows = []
    for (one, other, tasks), values, p in zip(asked, found, ps, strict=True):
        low, high = statistics.bootstrap_interval(values, seed=0)
        rows.append(
            [
                f"{one} − {other}",
                str(tasks),
                f"{np.mean(values):+.1f}",
                f"{low:+.1f} to {high:+.1f}",
                f"{p:.4f}",
            ]
        )
    below = (
        "Paired over the examples of all tasks, each with all of its seeds; permutation test, "
        "Holm-corrected within this table."
    )
    return (f"Contrasts, {model}", ["arms", "tasks", "Δ", "95 %", "p (Holm)"], rows, below)


def _in(study: Study, arm: str) -> bool:
    return any(arm in pair for pair in study.contrasts)


def _examples(result: Result, workdir: Path) -> dict[int, dict[Hashable, float]]:
    return {
        seed: example_scores(read_predictions(line, workdir)) for seed, line in result.lines.items()
    }


def transfers_of(study: Study, results: Sequence[Result]) -> dict[str, dict[str, dict[str, float]]]:
    """Panel to source to target to mean score over seeds; a panel is an arm and its examples.

    A score on a task that the study has changed since is left out.
    """
    now = {
        (cell.arm.name, cell.model, cell.seed, cell.task): fingerprint(cell.arm.config)
        for cell in cells_of(study)
    }
    panels: dict[str, dict[str, dict[str, float]]] = {}
    for r in results:
        for name in [name for name in r.first["measures"] if name.startswith("transfer")]:
            every = {seed: line["measures"][name] for seed, line in r.lines.items()}
            first = r.first["measures"][name]
            panel = f"{r.arm}, {first['shots']} of the target's examples"
            panels.setdefault(panel, {})[r.task] = {
                target: float(np.mean([found["scores"][target] for found in every.values()]))
                for target in first["scores"]
                if all(
                    target in found["scores"]
                    and _same(found, target, now.get((r.arm, r.model, seed, target)))
                    for seed, found in every.items()
                )
            }
    return panels


def _same(found: Mapping[str, Any], target: str, now: str | None) -> bool:
    """Whether the target's cell is as it was; a line of before that was told counts as such."""
    then = found.get("configs", {}).get(target)
    return None in (then, now) or then == now


def _transfers(
    study: Study, model: str, tasks: Sequence[str], results: Sequence[Result]
) -> list[Part]:
    parts: list[Part] = []
    for panel, matrix in transfers_of(study, results).items():
        # A cell that was run before the study had a task, or changed it, has no score on it.
        targets = list(dict.fromkeys(t for scores in matrix.values() for t in scores))
        rows = [
            [s, *(f"{matrix[s][t]:.1f}" if t in matrix[s] else "–" for t in targets)]
            for s in tasks
            if s in matrix
        ]
        foreign = [
            [matrix[s][t] for s in tasks if s in matrix and s != t and t in matrix[s]]
            for t in targets
        ]
        rows.append(["mean of other sources", *(_mean(scores) for scores in foreign)])
        every = [score for scores in foreign for score in scores]
        below = f"From another task: {_mean(every)} on average."
        parts.append((f"Transfer, {model}: {panel}", ["trained on", *targets], rows, below))
    return parts


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):.1f}" if values else "–"
