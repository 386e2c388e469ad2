"""Trains many adapters at once over one base: seeds × learning rates × initialisations.

    python -m pintern.population --config=experiments/ipt/variance.py --workdir=runs/variance \\
        --vary=seed=0,1,2,3 --vary=train.learning_rate=1e-2,3e-2

Every combination is a member with a run folder of its own, `members/<name>/`, which
`python -m pintern.evaluate` and `python -m pintern.export` take like any other. A config file may
say what its population varies by default: `VARY = {"seed": (0, 1, 2, 3)}`. Run the same command
again to resume; all members go on from the last step that all of them saved. A member whose loss
is no longer finite stops there; the others go on as if it had never been.

SIGTERM (or Ctrl-C) saves and exits with 0.

`--evaluate` scores every trained member on the test set, and tells how far the seeds lie apart.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from pintern import cli, distributed
from pintern.training.signals import sigterm

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from pintern.training.members import Outcome
    from pintern.training.variation import Variation

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the population.", required=True)
VARY = flags.DEFINE_multi_string(
    "vary", [], "FIELD=VALUE,VALUE,… of the config; several make every combination."
)
EVALUATE = flags.DEFINE_boolean("evaluate", False, "Score every trained member on the test set.")


def main(_: list[str]) -> None:
    """Trains the population that the flags name."""
    with sigterm():  # before the imports, which take seconds
        from pintern.remote import local_folder
        from pintern.training.variation import members_of, parse_variation, spread_over_seeds, table

        workdir = local_folder(WORKDIR.value, "members", "population")
        config = cli.config_from_flags()
        vary = parse_variation(config, VARY.value) or _variation_of_file()
        members = members_of(config, vary)
        folders = [workdir / "members" / name for name in members]
        from pintern.training.population import train_population

        outcomes = train_population(list(members.values()), folders)
    stopped = any(outcome.state == "stopped" for outcome in outcomes)
    scores = _evaluate(list(members.values()), outcomes) if EVALUATE.value and not stopped else {}
    print(table(outcomes, scores))
    if scores:
        print(spread_over_seeds(list(members.values()), vary, outcomes, scores))
    if stopped:
        print(f"Stopped by a signal; what was trained is saved in {workdir}.", end=" ")
        print("The same command goes on.")
        sys.exit(distributed.stopped_status())
    trained = [outcome.workdir for outcome in outcomes if outcome.state == "trained"]
    if trained:
        print(f"Next: python -m pintern.evaluate --workdir={trained[0]}")


def _evaluate(configs: Sequence[ConfigDict], outcomes: Sequence[Outcome]) -> dict[Path, float]:
    """Scores of the trained members on the test set, by folder; kept in `eval/<step>/`."""
    from pintern.assemble import assemble, load_base
    from pintern.evaluation.run import (
        InferencePrompt,
        evaluate,
        evaluate_together,
        write_evaluation,
    )
    from pintern.progress import Progress
    from pintern.training.restore import restore_adapter

    base = load_base(configs[0])
    trained = [o.workdir for o in outcomes if o.state == "trained"]
    configs = [c for c, o in zip(configs, outcomes, strict=True) if o.state == "trained"]
    members, steps = [], []
    for config, workdir in zip(configs, trained, strict=True):
        parts = assemble(config, prompts_directory=workdir / "prompts", base=base)
        adapter, step = restore_adapter(workdir, parts)
        members.append((parts, adapter))
        steps.append(step)
    if not members:
        return {}
    prompts = [InferencePrompt.of(config) for config in configs]
    count = sum(len(parts.prompts.task.test) for parts, _ in members)
    with Progress("evaluate", count, units="requests") as bar:
        if _alike(configs):
            found = evaluate_together(members, prompts[0], progress=bar.advance)
        else:
            found = [
                evaluate(*member, prompt, progress=bar.advance)
                for member, prompt in zip(members, prompts, strict=True)
            ]
    for workdir, step, evaluation, prompt in zip(trained, steps, found, prompts, strict=True):
        write_evaluation(workdir / "eval" / str(step), evaluation, prompt)
    return {workdir: each.scores.value for workdir, each in zip(trained, found, strict=True)}


def _alike(configs: Sequence[ConfigDict]) -> bool:
    """Whether one batch can serve all members: one way of decoding, and nothing is drawn."""
    fields = [config.eval.to_dict() for config in configs]
    greedy = fields[0]["temperature"] == 0 and fields[0]["samples"] == 1
    return greedy and fields[0]["cached"] and all(each == fields[0] for each in fields)


def _variation_of_file() -> Variation:
    """`VARY` of the config file, if it has one."""
    from pintern.python_file import load_file
    from pintern.training.variation import check_variation

    if flags.FLAGS.config is None:
        return {}
    found = getattr(load_file(flags.FLAGS.config, flag="config"), "VARY", {})
    return check_variation(found, f"VARY of {flags.FLAGS.config}")


if __name__ == "__main__":
    cli.define_config()
    cli.run(main)
