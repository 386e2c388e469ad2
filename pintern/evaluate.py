"""Scores a run's checkpoint, or the base as it is, on the test set.

    python -m pintern.evaluate --workdir=runs/first
    python -m pintern.evaluate --config=experiments/arms/icl.py

By default the prompt is what the config says for inference: the query alone. `--base` switches the
adapter off, and `--keep_rate=1 --shots=2` puts the prompt back, so that in-context learning is
measured by the same code. Predictions and scores go to eval/<step>/ in the run's folder; what is
scored otherwise than the run's config says goes beside it, under a name that tells how.

`--samples=20 --temperature=0.8` draws several answers to each example; their scores are averaged,
and for right-or-wrong metrics pass@k is told.

`--adapter=DIR` scores a PEFT directory or an export in place of a checkpoint. With `--config`, and
one of `--adapter`, `--base` or a config that trains nothing, no run is needed: `--workdir` is then
made and holds these evaluations, and without it nothing is written. A run that is there may be
scored with other fields of `eval` than its own: `--config.eval.max_new_tokens=32`, for instance.

`--watch` stands beside a run that trains, here or on another machine that sees its folder, and
scores each checkpoint as it comes; it ends when the last one is scored. SIGTERM ends it at once,
SIGUSR1 tells it that training has ended: it scores what is left.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from pintern import cli, distributed

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from pintern.adapters.adapter import Adapter
    from pintern.assemble import Parts

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
WATCH = flags.DEFINE_boolean("watch", False, "Score each checkpoint of a run as it comes.")
POLL = flags.DEFINE_float(
    "poll", 5.0, "Seconds between looks for a new checkpoint, with --watch.", lower_bound=0.0
)


def main(_: list[str]) -> None:
    """Scores what the flags name, or with `--watch` each checkpoint as it comes."""
    from pintern.remote import local_workdir

    if WATCH.value:
        _watch(Path(WORKDIR.value) if WORKDIR.value else None)
        return
    distributed.initialize()
    if WORKDIR.value:
        with local_workdir(WORKDIR.value) as workdir:
            _once(workdir)
    else:
        _once(None)


def _once(workdir: Path | None) -> None:
    config, trained = _scored(workdir)
    _apply_flags(config)

    from pintern.interop.read import read_adapter
    from pintern.training.restore import restore_run

    parts, adapter, step = restore_run(workdir, config, STEP.value, base=not trained)
    if ADAPTER.value is not None:
        adapter = read_adapter(ADAPTER.value, parts.checkpoint)
        # The context has to hold this one's virtual tokens, and not those of the run's own.
        config.adapter.soft_prompt = adapter.num_virtual_tokens
    _score(workdir, parts, adapter, _name(workdir, config, step if trained else None))


def _watch(workdir: Path | None) -> None:
    # Before the imports below, which take seconds: a launcher may signal from now on.
    from pintern.training.signals import Signals

    signals = Signals()
    from pintern.errors import UserError
    from pintern.remote import is_remote

    given = {"--step": STEP.value, "--adapter": ADAPTER.value}
    wrong = cli.config_flags() + [name for name, value in given.items() if value is not None]
    wrong += ["--base"] * BASE.value
    if wrong:
        raise UserError(
            f"--watch scores each checkpoint of the run; {wrong[0]} names something else.",
            f"Leave out --watch or {wrong[0]}.",
        )
    if workdir is None:
        raise UserError("--watch needs the run to stand beside.", "Give --workdir=RUN.")
    if is_remote(WORKDIR.value):
        raise UserError(
            f"--watch can't look into --workdir={WORKDIR.value}.",
            "Give a folder that it shares with training; or score the run without --watch.",
        )
    from pintern.config import trains
    from pintern.training.watch import watch
    from pintern.training.workdir import came_to_nothing, read_config

    # What came to nothing may still be replaced by a run that trains.
    if not came_to_nothing(workdir) and not trains(read_config(workdir)):
        raise UserError(
            f"--watch scores checkpoints, and {workdir} trains nothing: none will come.",
            "Leave out --watch to score it.",
        )
    complete = watch(
        workdir,
        signals,
        prepare=_apply_flags,
        score=lambda parts, adapter, step: _score(
            workdir, parts, adapter, _name(workdir, parts.config, step)
        ),
        name_of=functools.partial(_name, workdir),
        poll=POLL.value,
    )
    print("The run's last step is scored." if complete else "Ended before the run's last step.")


def _apply_flags(config: ConfigDict) -> None:
    """Puts the flags' inference prompt and sampling into the config, and checks it."""
    from pintern.config import validate

    for name, flag in (
        ("keep_rate", KEEP_RATE),
        ("shots", SHOTS),
        ("samples", SAMPLES),
        ("temperature", TEMPERATURE),
    ):
        if flag.value is not None:
            config.eval[name] = flag.value
    validate(config, recorded=True)


def _name(workdir: Path | None, config: ConfigDict, step: int | None) -> str:
    """Folder in eval/ of what is scored (no step is the base), and how, if not as the run says."""
    from pintern.training.workdir import read_config

    fields = config.eval
    own = fields if workdir is None else read_config(workdir).eval
    name = "base" if step is None else str(step)
    if ADAPTER.value is not None:
        path = Path(ADAPTER.value).resolve()  # many are called `peft`
        name = f"adapter-{path.name}-{hashlib.sha256(bytes(path)).hexdigest()[:6]}"
    told = {
        f"-tau{fields.keep_rate:g}-shots{fields.shots}": ("keep_rate", "shots"),
        "-cached" if fields.cached else "-uncached": ("cached",),
        f"-samples{fields.samples}": ("samples",),
        f"-temperature{fields.temperature:g}": ("temperature",),
        f"-tokens{fields.max_new_tokens}": ("max_new_tokens",),
    }
    for how, names in told.items():
        if any(fields[each] != own[each] for each in names):
            name += how
    return name


def _score(workdir: Path | None, parts: Parts, adapter: Adapter | None, name: str) -> None:
    """Scores an adapter, or the base, writes it to eval/ and prints it."""
    from pintern.evaluation.run import InferencePrompt, evaluate, write_evaluation
    from pintern.progress import Progress

    prompt = InferencePrompt.of(parts.config)
    requests = len(parts.prompts.task.test) * parts.config.eval.samples
    with Progress("evaluate", requests, units="requests") as bar:
        found = evaluate(parts, adapter, prompt, progress=bar.advance)
    if not distributed.is_first():
        return
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
        print(f"Predictions: {workdir / 'eval' / name / 'predictions.jsonl'}", flush=True)


def _scored(workdir: Path | None) -> tuple[ConfigDict, bool]:
    """The config, and whether a run's checkpoint is scored (else the base, or `--adapter`)."""
    from pintern.config import trains
    from pintern.errors import UserError
    from pintern.training.workdir import check_config, claim, is_begun, read_config

    if BASE.value and ADAPTER.value is not None:
        raise UserError("--base switches the adapter off; --adapter names one. Give one of them.")
    given = cli.config_flags()
    if not given and workdir is None:
        raise UserError("Give --workdir=RUN, or --config=EXPERIMENT.", "See --help.")
    config = cli.config_from_flags(None if workdir is None else lambda: read_config(workdir))
    trained = trains(config) and not BASE.value and ADAPTER.value is None
    if STEP.value is not None and not trained:
        raise UserError(
            f"--step={STEP.value} names a checkpoint of the run, but "
            f"{'the base' if ADAPTER.value is None else '--adapter'} is scored.",
            "Leave one of them out.",
        )
    if trained and workdir is None:
        raise UserError(
            f"The config of {config.name!r} trains an adapter, and no run of it is named.",
            "Train it (python -m pintern.train, the same --config and a --workdir), then give "
            "--workdir here; or score --base.",
        )
    if given and workdir is not None:
        if trained or "--config" not in given or is_begun(workdir):
            check_config(
                workdir,
                config,
                besides=("eval.",),
                mend="Leave out --config, and the run's own is taken; only its `eval` may be "
                "changed.",
            )
        else:
            distributed.first_before_others(lambda: claim(workdir, config))
    return config, trained


if __name__ == "__main__":
    cli.define_config()
    cli.run(main)
