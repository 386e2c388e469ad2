"""Trains many adapters at once over one base: seeds × learning rates × initialisations.

    python -m pintern.population --config=experiments/ipt/variance.py --workdir=runs/variance \\
        --vary=seed=0,1,2,3 --vary=train.learning_rate=1e-2,3e-2

Every combination is a member with a run folder of its own, `members/<name>/`, which
`python -m pintern.evaluate` and `python -m pintern.export` take like any other. A config file may
say what its population varies by default: `VARY = {"seed": (0, 1, 2, 3)}`. Run the same command
again to resume; all members go on from the last step that all of them saved. A member whose loss
is no longer finite stops there; the others go on as if it had never been.

`--evaluate` scores every trained member on the test set, and tells how far the seeds lie apart.
"""

from __future__ import annotations

import itertools
import math
import re
import runpy
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from pintern import cli

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from pintern.training.members import Outcome

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the population.", required=True)
VARY = flags.DEFINE_multi_string(
    "vary", [], "FIELD=VALUE,VALUE,… of the config; several make every combination."
)
EVALUATE = flags.DEFINE_boolean("evaluate", False, "Score every trained member on the test set.")

Variation = dict[str, tuple[Any, ...]]


def main(_: list[str]) -> None:
    """Trains the population that the flags name."""
    config = cli.config_from_flags()
    vary = parse_variation(config, VARY.value) or _variation_of_file()
    members = members_of(config, vary)
    workdir = Path(WORKDIR.value)
    folders = [workdir / "members" / name for name in members]
    from pintern.training.population import train_population

    outcomes = train_population(list(members.values()), folders)
    stopped = any(outcome.state == "stopped" for outcome in outcomes)
    scores = _evaluate(list(members.values()), outcomes) if EVALUATE.value and not stopped else {}
    print(table(outcomes, scores))
    if scores:
        print(spread_over_seeds(list(members.values()), vary, outcomes, scores))
    if stopped:
        print(f"Stopped by a signal; saved in {workdir}. The same command goes on from there.")
    else:
        print(f"Next: python -m pintern.evaluate --workdir={folders[0]}")


def parse_variation(config: ConfigDict, flags_given: Sequence[str]) -> Variation:
    """Fields and their values from `field=value,value`, in the type that the config has.

    Raises:
      UserError: a field that isn't one or can't be varied, or a value of another type.
    """
    from pintern.errors import UserError
    from pintern.training.members import VARIED

    vary: Variation = {}
    for given in flags_given:
        field, equals, values = given.partition("=")
        field = field.removeprefix("config.")
        if field not in VARIED or not equals or not values:
            raise UserError(
                f"--vary={given} is not FIELD=VALUE,VALUE with a field that members may differ in.",
                f"Those are {', '.join(VARIED)}.",
            )
        if field in vary:
            raise UserError(f"--vary names {field} twice; list its values in one flag.")
        kind = type(_get(config, field))
        try:
            vary[field] = tuple(kind(value) for value in values.split(","))
        except ValueError as error:
            raise UserError(
                f"--vary={given}: {field} takes values like {_get(config, field)!r}."
            ) from error
    return vary


def members_of(config: ConfigDict, vary: Variation) -> dict[str, ConfigDict]:
    """Name to config of every combination: `seed-0_learning_rate-0.01`.

    Raises:
      UserError: nothing is varied, or a value that the config can't have.
    """
    from pintern.config import validate
    from pintern.errors import UserError

    if not vary:
        raise UserError(
            "A population varies something, and neither --vary nor a VARY in the config file says "
            "what.",
            "For instance --vary=seed=0,1,2,3 --vary=train.learning_rate=1e-2,3e-2.",
        )
    members: dict[str, ConfigDict] = {}
    for values in itertools.product(*vary.values()):
        member = config.copy_and_resolve_references()
        words = []
        for field, value in zip(vary, values, strict=True):
            group, _, last = field.rpartition(".")
            (member[group] if group else member)[last] = value
            shown = f"{value:g}" if isinstance(value, float) else str(value)
            # A text or a path makes no folder name: its number stands for it.
            plain = re.fullmatch(r"[\w.+-]{1,40}", shown)
            words.append(f"{last}-{shown if plain else vary[field].index(value)}")
        name = "_".join(words)
        if name in members:
            raise UserError(f"Two members would be called {name}: --vary repeats a value.")
        members[name] = validate(member)
    return members


def table(outcomes: Sequence[Outcome], scores: dict[Path, float]) -> str:
    """One line a member: how it ended, its last loss, and its score where it was evaluated."""
    width = max(len("member"), *(len(outcome.workdir.name) for outcome in outcomes))
    lines = [f"{'member':<{width}}  {'state':<9} {'step':>7} {'last loss':>10} {'score':>7}"]
    for outcome in outcomes:
        loss = "–" if outcome.loss is None else f"{outcome.loss:.4f}"
        score = f"{scores[outcome.workdir]:.1f}" if outcome.workdir in scores else "–"
        lines.append(
            f"{outcome.workdir.name:<{width}}  {outcome.state:<9} {outcome.step:>7} {loss:>10} "
            f"{score:>7}"
        )
    lines += [
        f"{outcome.workdir.name}: {outcome.message}" for outcome in outcomes if outcome.message
    ]
    return "\n".join(lines)


def spread_over_seeds(
    configs: Sequence[ConfigDict],
    vary: Variation,
    outcomes: Sequence[Outcome],
    scores: dict[Path, float],
) -> str:
    """Mean and standard deviation over the seeds of each setting of the other varied fields."""
    others = [field for field in vary if field != "seed"]
    found: dict[tuple[str, ...], list[float]] = {}
    for config, outcome in zip(configs, outcomes, strict=True):
        setting = tuple(f"{field}={_get(config, field)}" for field in others)
        found.setdefault(setting, [])
        if outcome.workdir in scores:
            found[setting].append(scores[outcome.workdir])
    names = [", ".join(setting) or "all" for setting in found]
    width = max(len("setting"), *map(len, names))
    lines = [f"{'setting':<{width}}  {'seeds':>5} {'mean':>6} {'SD':>6} {'min':>6} {'max':>6}"]
    for name, values in zip(names, found.values(), strict=True):
        if not values:
            lines.append(f"{name:<{width}}  {0:>5}")
            continue
        spread = statistics.stdev(values) if len(values) > 1 else math.nan
        lines.append(
            f"{name:<{width}}  {len(values):>5} {statistics.mean(values):>6.1f} {spread:>6.1f} "
            f"{min(values):>6.1f} {max(values):>6.1f}"
        )
    return "\n".join(lines)


def _evaluate(configs: Sequence[ConfigDict], outcomes: Sequence[Outcome]) -> dict[Path, float]:
    """Scores of the trained members on the test set, by folder; kept in `eval/<step>/`."""
    from pintern.assemble import assemble, load_base
    from pintern.evaluation.run import InferencePrompt, evaluate, write_evaluation
    from pintern.progress import Progress
    from pintern.training.restore import restore_adapter

    base = load_base(configs[0])
    scores = {}
    for config, outcome in zip(configs, outcomes, strict=True):
        if outcome.state != "trained":
            continue
        parts = assemble(config, prompts_directory=outcome.workdir / "prompts", base=base)
        adapter, step = restore_adapter(outcome.workdir, parts)
        prompt = InferencePrompt.of(config)
        count = len(parts.prompts.task.test)
        with Progress(f"evaluate {outcome.workdir.name}", count, unit="request") as bar:
            found = evaluate(parts, adapter, prompt, progress=bar.advance)
        write_evaluation(outcome.workdir / "eval" / str(step), found, prompt)
        scores[outcome.workdir] = found.scores.value
    return scores


def _variation_of_file() -> Variation:
    """`VARY` of the config file, if it has one."""
    path = flags.FLAGS["config"].config_filename if flags.FLAGS.config is not None else None
    found = runpy.run_path(path.split(":")[0]).get("VARY", {}) if path else {}
    return {field: tuple(values) for field, values in found.items()}


def _get(config: ConfigDict, field: str) -> Any:
    for name in field.split("."):
        config = config[name]
    return config


if __name__ == "__main__":
    cli.define_config()
    cli.run(main)
