"""Scores a run's checkpoint on the test set.

    python -m pintern.evaluate --workdir=runs/first

By default the prompt is what the config says for inference: the query alone. `--base` switches the
adapter off, and `--keep_rate=1 --shots=2` puts the prompt back, so that in-context learning is
measured by the same code. Predictions and scores go to eval/<step>/ in the run's folder.

`--adapter=DIR` scores a PEFT directory or an export in place of a checkpoint. With `--config` the
run's folder needn't be there: it is made, and holds evaluations of `--adapter` or `--base` alone.

`--watch` stands beside a run that trains, here or on another machine that sees its folder, and
scores each checkpoint as it comes; it ends when the last one is scored. SIGTERM ends it at once,
SIGUSR1 tells it that training has ended: it scores what is left.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from pintern import cli

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from pintern.adapters.adapter import Adapter
    from pintern.assemble import Parts

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
STEP = flags.DEFINE_integer("step", None, "Checkpoint to score; the latest by default.")
BASE = flags.DEFINE_boolean("base", False, "Score the base model, adapter off.")
ADAPTER = flags.DEFINE_string(
    "adapter", None, "PEFT LoRA or PROMPT_TUNING folder, or an export, to score instead."
)
KEEP_RATE = flags.DEFINE_float("keep_rate", None, "τ of the template; default: config.eval.")
SHOTS = flags.DEFINE_integer("shots", None, "Retrieved examples; default: config.eval.")
WATCH = flags.DEFINE_boolean("watch", False, "Score each checkpoint of a run as it comes.")
POLL = flags.DEFINE_float(
    "poll", 5.0, "Seconds between looks for a new checkpoint, with --watch.", lower_bound=0.0
)


def main(_: list[str]) -> None:
    """Scores the checkpoint that the flags name, or with `--watch` each as it comes."""
    workdir = Path(WORKDIR.value)
    if WATCH.value:
        _watch(workdir)
        return
    from pintern.errors import UserError
    from pintern.training.workdir import claim, read_config

    trained = not BASE.value and ADAPTER.value is None
    if BASE.value and ADAPTER.value is not None:
        raise UserError("--base switches the adapter off; --adapter names one. Give one of them.")
    if flags.FLAGS.config is None:
        config = read_config(workdir)
    elif trained:
        raise UserError(
            "--config with a run's checkpoint: the run has its own config.",
            "Leave --config out, or name what to score by --adapter or --base.",
        )
    else:
        config = cli.config_from_flags()
        claim(workdir, config)
    _apply_prompt(config)

    from pintern.interop.read import read_adapter
    from pintern.training.restore import restore_run

    parts, adapter, step = restore_run(workdir, config, STEP.value, base=not trained)
    if ADAPTER.value is not None:
        adapter = read_adapter(ADAPTER.value, parts.checkpoint)
        # The context has to hold this one's virtual tokens, and not those of the run's own.
        config.adapter.soft_prompt = adapter.num_virtual_tokens
    _score(workdir, parts, adapter, _name(config, step))


def _watch(workdir: Path) -> None:
    # Before the imports below, which take seconds: a launcher may signal from now on.
    from pintern.evaluation.signals import Signals

    signals = Signals()
    from pintern.errors import UserError

    given = {"--config": flags.FLAGS.config, "--step": STEP.value, "--adapter": ADAPTER.value}
    wrong = [name for name, value in given.items() if value is not None] + ["--base"] * BASE.value
    if wrong:
        raise UserError(
            f"--watch scores each checkpoint of the run; {wrong[0]} names something else.",
            f"Leave out --watch or {wrong[0]}.",
        )
    from pintern.evaluation.watch import watch

    complete = watch(
        workdir,
        signals,
        prepare=_apply_prompt,
        score=lambda parts, adapter, step: _score(
            workdir, parts, adapter, _name(parts.config, step)
        ),
        name_of=_name,
        poll=POLL.value,
    )
    print("The run's last step is scored." if complete else "Ended before the run's last step.")


def _apply_prompt(config: ConfigDict) -> None:
    """Puts the flags' inference prompt into the config, and checks it."""
    from pintern.config import validate

    if KEEP_RATE.value is not None:
        config.eval.keep_rate = KEEP_RATE.value
    if SHOTS.value is not None:
        config.eval.shots = SHOTS.value
    validate(config)


def _name(config: ConfigDict, step: int) -> str:
    """Folder in eval/ of what is scored."""
    name = "base" if BASE.value else str(step)
    if ADAPTER.value is not None:
        name = f"adapter-{Path(ADAPTER.value).resolve().name}"
    if config.eval.keep_rate or config.eval.shots:
        name += f"-tau{config.eval.keep_rate:g}-shots{config.eval.shots}"
    return name


def _score(workdir: Path, parts: Parts, adapter: Adapter | None, name: str) -> None:
    """Scores an adapter, or the base, writes it to eval/ and prints it."""
    from pintern.evaluation.run import InferencePrompt, evaluate, write_evaluation
    from pintern.progress import Progress

    prompt = InferencePrompt(parts.config.eval.keep_rate, parts.config.eval.shots)
    with Progress("evaluate", len(parts.prompts.task.test), unit="request") as bar:
        found = evaluate(parts, adapter, prompt, progress=bar.advance)
    write_evaluation(workdir / "eval" / name, found, prompt)
    if parts.prompts.task.note:
        print(parts.prompts.task.note)
    bounds = ""
    if found.interval is not None:
        bounds = " (95% {:.1f}–{:.1f})".format(*found.interval)
    print(f"{found.scores.name} {found.scores.value:.1f}{bounds}, {name}")
    for slice_name, scores in found.slices.items():
        print(f"  {slice_name}: {scores.value:.1f}")
    print(
        f"prompt tokens per request: {found.template + found.examples + found.query:.1f} "
        f"(template {found.template:.0f}, examples {found.examples:.1f}, query {found.query:.1f})"
    )
    print(f"Predictions: {workdir / 'eval' / name / 'predictions.jsonl'}", flush=True)


if __name__ == "__main__":
    cli.define_config()
    cli.run(main)
