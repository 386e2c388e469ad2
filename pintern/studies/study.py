"""What a study is: the declaration that a study file returns from `get_study()`.

    def direct(seed: int) -> Arm:
        return arm_of(direct_fine_tuning.get_config(), seed=seed)

    def get_study() -> Study:
        return Study(
            name="demo",
            question="Does the curriculum matter?",
            rows=(Row(base, once=True), Row(direct), Row(ours, factors={"stages": 4})),
            seeds=(0, 1, 2),
            reference="direct fine-tuning",
        )

Every row is crossed with every task, model and seed; each combination is a cell, an ordinary run
folder `cells/<task>/<model>/<arm>/seed-<n>` that `pintern.evaluate` and `pintern.export` read too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pintern.arms import Arm
from pintern.config import validate
from pintern.errors import UserError
from pintern.report.accounting import PriceList

if TYPE_CHECKING:
    from pintern.arms import Measured

Overrides = Mapping[str, Any]
"""Config fields by dotted name, e.g. `{"task.kind": "nl2bash", "eval.max_new_tokens": 96}`."""


class Measure(Protocol):
    """A further measurement of a cell: a frozen dataclass, so that its `repr` tells its parameters.

    See `diagnostics` for those that there are; a study file may bring its own.
    """

    name: str

    def __call__(self, done: Done) -> dict[str, Any]:
        """What was measured, JSON-ready; stands in the ledger under `measures.<name>`."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the study's table.

    Attributes:
      make: seed to arm. The arm's config is what the study's overrides are laid over. Its name must
        not depend on the seed. Its `scored_as` is not used: every row is scored.
      factors: what it varies, for plots and tables, e.g. `{"schedule": "linear", "stages": 4}`.
      once: no seed changes it (the base behind a fixed prompt): run at the first seed only.
      measures: of this row, beside the study's.
    """

    make: Callable[[int], Arm]
    factors: Mapping[str, str | float] = dataclasses.field(default_factory=dict)
    once: bool = False
    measures: tuple[Measure, ...] = ()


@dataclasses.dataclass(frozen=True)
class PaperTable:
    """Published figures, printed beside ours and never mixed with them.

    Attributes:
      source: paper and table.
      columns: e.g. `("MBPP", "NL2F", "NL2Bash")`.
      rows: arm to as many figures; None where the paper has none, or none was read in a public
        source. Figures that are only remembered don't belong here.
      note: what differs between the paper's setting and this study's.
    """

    source: str
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[float | str | None, ...]]
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Lines:
    """A plot of the score over one factor, a line for each value of another.

    Attributes:
      x: factor along the axis, e.g. `stages`.
      by: factor that tells the lines apart, e.g. `schedule`; empty draws one line.
      caption: below the plot.
      measure: `score`, or the dotted name of a number in the ledger's `measures`, e.g.
        `kl.final`.
    """

    x: str
    by: str = ""
    caption: str = ""
    measure: str = "score"


@dataclasses.dataclass(frozen=True)
class Study:
    """A grid and what is made of it.

    Attributes:
      name: of the study.
      question: what it asks, one paragraph.
      rows: the arms.
      tasks: name to what the task changes in every arm's config.
      models: name to what the model changes; laid over the task's changes.
      seeds: of every random choice.
      reference: arm that the others are tested against, pair by pair; empty makes no tests.
      contrasts: pairs of arms that are tested over the examples of all tasks together.
      none: arm without the prompt, and
      prompted: arm with the full prompt: both together give the internalisation score
        (x − none) / (prompted − none) of the others. Empty leaves it out.
      measures: of every row that trains; see `diagnostics`. Others have their own (`Row.measures`).
      paper: published tables.
      lines: plots over factors. Pareto, spread over seeds, curriculum, transfer, KL and staleness
        are drawn wherever the ledger has what they need.
      notes: sentences that stand below the table: substitutes, reduced sizes, what isn't claimed.
      prices: for the cost of a request.
      usd_per_hour: of the machine, for what training cost.
      population: soft prompts without LoRA that differ in seed, rate or initialisation alone are
        trained so many at once, in one program; 1 trains each by itself.
    """

    name: str
    question: str
    rows: tuple[Row, ...]
    tasks: Mapping[str, Overrides] = dataclasses.field(default_factory=lambda: {"company": {}})
    models: Mapping[str, Overrides] = dataclasses.field(default_factory=lambda: {"nano": {}})
    seeds: tuple[int, ...] = (0, 1, 2)
    reference: str = ""
    contrasts: tuple[tuple[str, str], ...] = ()
    none: str = ""
    prompted: str = ""
    measures: tuple[Measure, ...] = ()
    paper: tuple[PaperTable, ...] = ()
    lines: tuple[Lines, ...] = ()
    notes: tuple[str, ...] = ()
    prices: PriceList = dataclasses.field(default_factory=PriceList)
    usd_per_hour: float = 0.10
    population: int = 8


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of the grid.

    Attributes:
      task: its name.
      model: its name.
      seed: the seed.
      arm: with the study's overrides in its config.
      factors: of its row.
      measures: that are taken of it.
    """

    task: str
    model: str
    seed: int
    arm: Arm
    factors: Mapping[str, str | float]
    measures: tuple[Measure, ...]

    @property
    def name(self) -> str:
        """`<task>/<model>/<arm>/seed-<n>`: its folder below `cells/`, and what `--only` matches."""
        return f"{slug(self.task)}/{slug(self.model)}/{slug(self.arm.name)}/seed-{self.seed}"

    def spec(self) -> dict[str, Any]:
        """All that decides what the cell gives, JSON-ready."""
        return {
            "config": self.arm.config.to_dict(),
            "prompt": dataclasses.asdict(self.arm.prompt),
            "trained": self.arm.trained,
            "measures": [repr(measure) for measure in self.measures],
        }

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits that change when anything in `spec` does."""
        text = json.dumps(self.spec(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclasses.dataclass(frozen=True)
class Done:
    """A cell that was just trained and scored: what a `Measure` is given.

    Attributes:
      study: the study.
      cell: the cell.
      folder: its run folder.
      measured: parts, adapter (None for an untrained arm) and evaluation.
    """

    study: Study
    cell: Cell
    folder: Path
    measured: Measured


def slug(text: str) -> str:
    """Text as a part of a folder's name."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "-"


def cells_of(study: Study) -> list[Cell]:
    """Every cell, in the order in which they are run: seed by seed, so that a study that is stopped
    early has whole replicas.

    Raises:
      UserError: an unknown config field or bad value, a seed among the overrides, two rows or
        measures of one name, an arm or a factor that the study names and no row has, an empty grid,
        one thing where a tuple of them belongs.
    """
    for what in ("rows", "seeds", "contrasts", "measures", "paper", "lines", "notes"):
        _check_tuple(f"Study {study.name!r}", what, getattr(study, what))
    for row in study.rows:
        _check_tuple(f"A row of study {study.name!r}", "measures", row.measures)
    for seed in study.seeds:
        if not isinstance(seed, int):
            raise UserError(f"Study {study.name!r} has the seed {seed!r}; give whole numbers.")
    for what in ("rows", "tasks", "models", "seeds"):
        if not getattr(study, what):
            raise UserError(f"Study {study.name!r} has no {what}.", "A grid needs at least one.")
    for pair in study.contrasts:
        if len(pair) != 2:
            raise UserError(f"Study {study.name!r} contrasts {pair!r}; a contrast is of two arms.")
    for name, overrides in (*study.tasks.items(), *study.models.items()):
        if "seed" in overrides:
            raise UserError(
                f"Study {study.name!r}: {name!r} sets config.seed, so that no seed would differ.",
                "Leave it out; the study's own `seeds` are the seeds.",
            )
    cells = [
        _cell(study, row, task, model, seed)
        for seed in study.seeds
        for model in study.models
        for task in study.tasks
        for row in study.rows
        if not (row.once and seed != study.seeds[0])
    ]
    names = [cell.name for cell in cells]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f"Study {study.name!r} has two cells named {twice[0]}.",
            "Give each row, task and model a name of its own (letters and digits count).",
        )
    arms = {cell.arm.name for cell in cells}
    paired = [arm for pair in study.contrasts for arm in pair]
    for name in (study.reference, study.none, study.prompted, *paired):
        if name and name not in arms:
            raise UserError(
                f"Study {study.name!r} names the arm {name!r}, which none of its rows makes.",
                f"There are: {', '.join(sorted(arms))}.",
            )
    factors = {name for row in study.rows for name in row.factors}
    for name in (name for line in study.lines for name in (line.x, line.by)):
        if name and name not in factors:
            raise UserError(
                f"Study {study.name!r} draws lines over {name!r}, a factor of none of its rows.",
                f"There are: {', '.join(sorted(factors)) or 'none'}.",
            )
    return cells


def _check_tuple(whose: str, what: str, value: object) -> None:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise UserError(
            f"{whose} has {what}={value!r:.60}, which is no tuple.",
            f"A tuple of one item ends with a comma: {what}=(ITEM,).",
        )


def _cell(study: Study, row: Row, task: str, model: str, seed: int) -> Cell:
    arm = row.make(seed)
    config = arm.config.copy_and_resolve_references()
    config.seed = seed
    prompt = arm.prompt
    for overrides in (study.tasks[task], study.models[model]):
        lay_over(config, overrides)
        fields = [field for field in dataclasses.asdict(prompt) if f"eval.{field}" in overrides]
        prompt = dataclasses.replace(prompt, **{field: config.eval[field] for field in fields})
    validate(config)
    measures = (*(study.measures if arm.trained else ()), *row.measures)
    names = [measure.name for measure in measures]
    if len(set(names)) < len(names):
        raise UserError(
            f"Arm {arm.name!r} has two measures of one name ({', '.join(names)}).",
            "Give one another, e.g. Transfer(shots=0, name='transfer_0').",
        )
    arm = dataclasses.replace(arm, config=config, prompt=prompt)
    return Cell(task, model, seed, arm, dict(row.factors), measures)


def lay_over(config: Any, overrides: Overrides) -> None:
    """Sets fields by their dotted names; `validate` then says whether they are right.

    Raises:
      UserError: no such field, or a value of another type.
    """
    for path, value in overrides.items():
        *groups, field = path.split(".")
        group = config
        for name in groups:
            if not hasattr(group, "keys") or name not in group:
                raise UserError(f"config.{path} is not a field.")
            group = group[name]
        try:
            group[field] = value
        except TypeError as error:  # of another type, or below what is no group
            raise UserError(f"config.{path} can't be set to {value!r}: {error}.") from error
