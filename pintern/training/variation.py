"""What the members of a population differ in, and what came of them, as tables."""

from __future__ import annotations

import itertools
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from pintern.config import validate
from pintern.errors import UserError
from pintern.training.members import VARIED, Outcome

Variation = dict[str, tuple[Any, ...]]


def parse_variation(config: ConfigDict, flags_given: Sequence[str]) -> Variation:
    """Fields and their values from `field=value,value`, in the type that the config has.

    Raises:
      UserError: a field that isn't one or can't be varied, or a value of another type.
    """
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


def check_variation(found: Any, where: str) -> Variation:
    """The variation that a config file holds, its values as tuples.

    Raises:
      UserError: it is no dict, a field can't be varied, or values that aren't several.
    """
    example = 'It should be like {"seed": (0, 1, 2), "train.learning_rate": (1e-2, 3e-2)}.'
    if not isinstance(found, dict):
        raise UserError(f"{where} is {found!r}.", example)
    for field, values in found.items():
        if field not in VARIED:
            raise UserError(
                f"{where} names {field!r}, which is no field that members may differ in.",
                f"Those are {', '.join(VARIED)}.",
            )
        if not isinstance(values, tuple | list | range) or not values:
            raise UserError(f"{where} has {values!r} for {field}, not values in a row.", example)
    return {field: tuple(values) for field, values in found.items()}


def members_of(config: ConfigDict, vary: Variation) -> dict[str, ConfigDict]:
    """Name to config of every combination: `seed-0_learning_rate-0.01`.

    Where soft prompts start in several ways, a member is left no text or file that its own way has
    no use for.

    Raises:
      UserError: nothing is varied, or a value that the config can't have.
    """
    if not vary:
        raise UserError(
            "A population varies something, and neither --vary nor a VARY in the config file says "
            "what.",
            "For instance --vary=seed=0,1,2,3 --vary=train.learning_rate=1e-2,3e-2.",
        )
    shown = {field: _words_of(values) for field, values in vary.items()}
    members: dict[str, ConfigDict] = {}
    for values in itertools.product(*vary.values()):
        member = config.copy_and_resolve_references()
        words = []
        for field, value in zip(vary, values, strict=True):
            name, _, last = field.rpartition(".")
            group = member[name] if name else member
            with group.ignore_type():  # a value of another type is told below
                group[last] = value
            words.append(f"{last}-{shown[field][vary[field].index(value)]}")
        if "adapter.soft_prompt_init" in vary:
            # The text, or the file, that another member starts from.
            for kind in ("text", "file"):
                if member.adapter.soft_prompt_init != kind:
                    member.adapter[f"soft_prompt_{kind}"] = ""
        name = "_".join(words)
        if name in members:
            raise UserError(f"Two members would be called {name}: --vary repeats a value.")
        members[name] = validate(member)
    return members


def _words_of(values: Sequence[Any]) -> list[str]:
    """A field's values as parts of folders' names."""
    shown = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    # A text or a path makes no folder name: its number stands for it.
    words = [
        text if re.fullmatch(r"[\w.+-]{1,40}", text) else str(number)
        for number, text in enumerate(shown)
    ]
    # A text that is a number, and another text's number, would be one folder.
    alike = len(set(words)) < len(set(map(repr, values)))
    return [str(number) for number in range(len(values))] if alike else words


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
        spread = f"{statistics.stdev(values):.1f}" if len(values) > 1 else "–"
        lines.append(
            f"{name:<{width}}  {len(values):>5} {statistics.mean(values):>6.1f} {spread:>6} "
            f"{min(values):>6.1f} {max(values):>6.1f}"
        )
    return "\n".join(lines)


def _get(config: ConfigDict, field: str) -> Any:
    for name in field.split("."):
        config = config[name]
    return config
