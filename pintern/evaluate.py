"""Scores a run's checkpoint, or the base as it is, on the test set.

    python -m pintern.evaluate --workdir=runs/first
    python -m pintern.evaluate --config=experiments/arms/icl.py

By default the prompt is what the config says for inference: the query alone. `--base` switches the
adapter off, and `--keep_rate=1 --shots=2` puts the prompt back, so that in-context learning is
measured by the same code. Predictions and scores go to eval/<step>/ in the run's folder.

`--samples=20 --temperature=0.8` draws several answers to each example; their scores are averaged,
and for right-or-wrong metrics pass@k is told.

`--adapter=DIR` scores a PEFT directory or an export in place of a checkpoint. With `--config`, and
one of `--adapter`, `--base` or a config that trains nothing, no run is needed: `--workdir` is then
made and holds these evaluations, and without it nothing is written. The `--config` of a run that is
there may differ from the run's own in `eval`.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from pintern import cli

if TYPE_CHECKING:
    from ml_collections import ConfigDict

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint to score; the latest by default.")
BASE = flags.DEFINE_boolean("base", False, "Score the base model, adapter off.")
ADAPTER = flags.DEFINE_string(
    "adapter", None, "PEFT LoRA or PROMPT_TUNING folder, or an export, to score instead."
)
KEEP_RATE = flags.DEFINE_float("keep_rate", None, "τ of the template; default: config.eval.")
SHOTS = flags.DEFINE_integer("shots", None, "Retrieved examples; default: config.eval.")
SAMPLES = flags.DEFINE_integer("samples", None, "Answers per example; default: config.eval.")
TEMPERATURE = flags.DEFINE_float("temperature", None, "Of sampling; default: config.eval.")


def main(_: list[str]) -> None:
    """Scores what the flags name."""
    workdir = Path(WORKDIR.value) if WORKDIR.value else None
    config, trained = _scored(workdir)
    if KEEP_RATE.value is not None:
        config.eval.keep_rate = KEEP_RATE.value
    if SHOTS.value is not None:
        config.eval.shots = SHOTS.value
    if SAMPLES.value is not None:
        config.eval.samples = SAMPLES.value
    if TEMPERATURE.value is not None:
        config.eval.temperature = TEMPERATURE.value

    from pintern.config import validate
    from pintern.evaluation.run import InferencePrompt, evaluate, write_evaluation
    from pintern.interop.read import read_adapter
    from pintern.progress import Progress
    from pintern.training.restore import restore_run

    validate(config)
    parts, adapter, step = restore_run(workdir, config, STEP.value, base=not trained)
    if ADAPTER.value is not None:
        adapter = read_adapter(ADAPTER.value, parts.checkpoint)
        # The context has to hold this one's virtual tokens, and not those of the run's own.
        config.adapter.soft_prompt = adapter.num_virtual_tokens
    prompt = InferencePrompt.of(config)
    requests = len(parts.prompts.task.test) * config.eval.samples
    with Progress("evaluate", requests, unit="request") as bar:
        found = evaluate(parts, adapter, prompt, progress=bar.advance)
    name = str(step) if trained else "base"
    if ADAPTER.value is not None:
        name = f"adapter-{Path(ADAPTER.value).resolve().name}"
    if prompt.keep_rate or prompt.shots:
        name += f"-tau{prompt.keep_rate:g}-shots{prompt.shots}"
    if not prompt.cached:
        name += "-uncached"
    if config.eval.samples > 1:
        name += f"-samples{config.eval.samples}"
    if workdir is not None:
        write_evaluation(workdir / "eval" / name, found, prompt)
    if parts.prompts.task.note:
        print(parts.prompts.task.note)
    bounds = ""
    if found.interval is not None:
        bounds = " (95% {:.1f}–{:.1f})".format(*found.interval)
    print(f"{found.scores.name} {found.scores.value:.1f}{bounds}, {name}")
    for slice_name, scores in found.slices.items():
        print(f"  {slice_name}: {scores.value:.1f}")
    for metric, scores in found.further.items():
        print(f"{metric} {scores.value:.1f}")
    for k, value in found.pass_at.items():
        print(f"pass@{k} {value:.1f}")
    print(
        f"prompt tokens per request: {found.template + found.examples + found.query:.1f} "
        f"(template {found.template:.0f}, examples {found.examples:.1f}, query {found.query:.1f})"
    )
    if workdir is not None:
        print(f"Predictions: {workdir / 'eval' / name / 'predictions.jsonl'}")


def _scored(workdir: Path | None) -> "tuple[ConfigDict, bool]":
    """The config, and whether a run's checkpoint is scored (else the base, or `--adapter`)."""
    from pintern.config import trains
    from pintern.errors import UserError
    from pintern.training.workdir import check_config, claim, read_config

    if BASE.value and ADAPTER.value is not None:
        raise UserError("--base switches the adapter off; --adapter names one. Give one of them.")
    given = flags.FLAGS.config is not None
    if not given and workdir is None:
        raise UserError("Give --workdir=RUN, or --config=EXPERIMENT.", "See --help.")
    config = cli.config_from_flags() if given else read_config(workdir)
    trained = trains(config) and not BASE.value and ADAPTER.value is None
    if trained and workdir is None:
        raise UserError(
            f"The config of {config.name!r} trains an adapter, and no run of it is named.",
            "Train it (python -m pintern.train, the same --config and a --workdir), then give "
            "--workdir here; or score --base.",
        )
    if given and trained:
        check_config(workdir, config, besides=("eval.",))
    elif given and workdir is not None:
        claim(workdir, config)
    return config, trained


if __name__ == "__main__":
    cli.define_config()
    cli.run(main)
