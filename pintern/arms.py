"""Arms side by side: each a config and an inference prompt, trained, scored and timed in one run.

An arm is a point in four choices: what is trained, what the prompt holds in training, what it holds
at inference, which loss. All four are configuration, so every arm goes through the same code.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from pintern.assemble import Parts, assemble
from pintern.config import trains, validate
from pintern.errors import UserError
from pintern.evaluation.latency import measure_latency
from pintern.evaluation.run import (
    Evaluation,
    InferencePrompt,
    evaluate,
    make_generator,
    test_rows,
    write_evaluation,
)
from pintern.folders import plain_name
from pintern.progress import Progress
from pintern.report.accounting import (
    ArmResult,
    Latency,
    PriceList,
    TokenCount,
    summarise,
    write_summary,
)
from pintern.training.loop import train
from pintern.training.restore import restore_run
from pintern.training.workdir import check_base, claim

_VERSIONED = ("jax", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")


class StoppedError(UserError):
    """A signal stopped a training, which is saved; the same call goes on from there."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One row of the table.

    Attributes:
      name: shown in the table.
      config: of the run; an untrained arm takes the base, task and prompts from it.
      prompt: what stands in front of the query at inference.
      trained: False is the base model, adapter off.
      scored_as: name of the arm whose scores hold for this one too (it answers the same tokens and
        differs in time and price only, as the cached full prompt does).
    """

    name: str
    config: ConfigDict
    prompt: InferencePrompt
    trained: bool = True
    scored_as: str = ""

    @property
    def folder(self) -> str:
        """Name of the arm's folder."""
        return plain_name(self.name)

    @property
    def what_is_trained(self) -> str:
        """`LoRA`, `soft prompt`, both, or `–`."""
        fields = self.config.adapter
        parts = ["LoRA"] * bool(fields.targets) + ["soft prompt"] * bool(fields.soft_prompt)
        return " + ".join(parts) if self.trained else "–"


def arm_of(
    config: ConfigDict, *, seed: int | None = None, name: str = "", scored_as: str = ""
) -> Arm:
    """The arm that a config describes: what is trained, both prompts and the loss stand in it.

    Args:
      config: of the arm, which gets a copy.
      seed: in place of the config's.
      name: in place of the config's.
      scored_as: see `Arm`.
    """
    config = config.copy_and_resolve_references()
    config.seed = config.seed if seed is None else seed
    config.name = name or config.name
    prompt = InferencePrompt.of(config)
    return Arm(config.name, config, prompt, trained=trains(config), scored_as=scored_as)


@dataclasses.dataclass
class Measured:
    """What running an arm gave.

    Attributes:
      arm: the arm.
      parts: base, tokenizer and prompts it worked with.
      adapter: the trained adapter, or None.
      evaluation: scores and tokens.
      training_seconds: of its training, the teacher's answers included.
    """

    arm: Arm
    parts: Parts
    adapter: Any
    evaluation: Evaluation
    training_seconds: float


def run_arms(arms: Sequence[Arm], workdir: Path) -> list[Measured]:
    """Trains and scores every arm in its own folder below `workdir/arms`, resuming what is there.

    Raises:
      UserError: see `run_arm`.
    """
    measured: dict[str, Measured] = {}
    for number, arm in enumerate(arms, 1):
        print(f"[{number}/{len(arms)}] {arm.name}", file=sys.stderr, flush=True)
        if arm.scored_as:
            validate(arm.config)
            measured[arm.name] = dataclasses.replace(measured[arm.scored_as], arm=arm)
        else:
            measured[arm.name] = run_arm(arm, workdir / "arms" / arm.folder)
    return [measured[arm.name] for arm in arms]


def run_arm(arm: Arm, folder: Path) -> Measured:
    """Trains one arm in its folder, or resumes it, and scores it on the test set.

    Raises:
      UserError: see `train`; `StoppedError` when a signal stopped the training.
    """
    validate(arm.config)
    if arm.trained:
        if not train(arm.config, folder):
            raise StoppedError(f"Stopped by a signal; {folder} is saved. Run again to go on.")
        parts, adapter, step = restore_run(folder, arm.config)
    else:
        claim(folder, arm.config)
        parts = assemble(arm.config, prompts_directory=folder / "prompts")
        check_base(folder, parts.checkpoint)
        adapter, step = None, 0
    requests = len(parts.prompts.task.test) * arm.config.eval.samples
    with Progress("evaluate", requests, units="requests") as bar:
        found = evaluate(parts, adapter, arm.prompt, progress=bar.advance)
    write_evaluation(folder / "eval" / str(step), found, arm.prompt)
    slices = ", ".join(f"{name} {s.value:.1f}" for name, s in found.slices.items())
    slices = f" ({slices})" if slices else ""
    print(f"  score {found.scores.value:.1f}{slices}", file=sys.stderr, flush=True)
    return Measured(arm, parts, adapter, found, _training_seconds(folder))


def time_arms(measured: Sequence[Measured], *, requests: int) -> dict[str, Latency]:
    """Latency of each arm on the same requests, interleaved."""
    serving = {
        m.arm.name: (
            make_generator(m.parts, m.adapter, m.arm.prompt),
            test_rows(m.parts, m.arm.prompt),
        )
        for m in measured
    }
    requests = min(requests, len(measured[0].parts.prompts.task.test))
    with Progress("latency", 2 * requests * len(serving), units="requests") as bar:
        return measure_latency(serving, requests=requests, progress=bar.advance)


def summary_of(
    measured: Sequence[Measured],
    latency: dict[str, Latency],
    *,
    full: str,
    cached: str,
    ours: str,
    prices: PriceList,
    usd_per_hour: float,
) -> dict[str, Any]:
    """The content of summary.json: see `report.accounting.summarise`."""
    results = [
        ArmResult(
            arm=m.arm.name,
            score=m.evaluation.scores.value,
            slices={name: scores.value for name, scores in m.evaluation.slices.items()},
            interval=m.evaluation.interval,
            tokens=TokenCount(
                template=m.evaluation.template,
                examples=m.evaluation.examples,
                query=m.evaluation.query,
                output=m.evaluation.output,
            ),
            latency=latency[m.arm.name],
            cached_prefix=m.arm.prompt.cached and m.arm.prompt.keep_rate > 0,
            training_seconds=m.training_seconds,
            metric=m.evaluation.scores.name,
            trained=m.arm.what_is_trained,
        )
        for m in measured
    ]
    return summarise(
        results, full=full, cached=cached, prices=prices, usd_per_hour=usd_per_hour, ours=ours
    )


def write_report(
    workdir: Path,
    measured: Sequence[Measured],
    summary: dict[str, Any],
    *,
    ours: str,
    command: str,
) -> Path:
    """Writes report/ with summary.json, PNG plots and index.html; returns the page's path."""
    from pintern.report import plots
    from pintern.report.html import write_html

    report = workdir / "report"
    report.mkdir(parents=True, exist_ok=True)
    write_summary(report / "summary.json", summary)
    best = next(m for m in measured if m.arm.name == ours)
    rows = _read_lines(workdir / "arms" / best.arm.folder / "metrics.jsonl")
    pictures = {
        "Score against prompt tokens": report / "score_against_tokens.png",
        f"Curriculum of {ours}": report / "curriculum.png",
        "Latency of one request": report / "latency.png",
        "Cost and break-even": report / "cost.png",
    }
    draw = (plots.plot_score_against_tokens, plots.plot_latency, plots.plot_cost)
    for plot, name in zip(draw, ("score_against_tokens", "latency", "cost"), strict=True):
        plot(summary, report / f"{name}.png")
    plots.plot_curriculum(rows, report / "curriculum.png")
    write_html(
        report / "index.html",
        summary,
        ladder=[
            dataclasses.asdict(rung)
            for _, rung in sorted(best.parts.prompts.ladder.items(), reverse=True)
        ],
        predictions={m.arm.name: m.evaluation.predictions for m in measured if not m.arm.scored_as},
        config=best.arm.config.to_dict(),
        plots=pictures,
        command=command,
        versions={
            "python": sys.version.split()[0],
            **{name: metadata.version(name) for name in _VERSIONED},
        },
    )
    return report / "index.html"


def _training_seconds(folder: Path) -> float:
    path = folder / "timings.jsonl"
    return sum(row["seconds"] for row in _read_lines(path)) if path.exists() else 0.0


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
