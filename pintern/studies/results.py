"""What the ledger says of each arm: one record per task, model and arm, over its seeds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pintern.errors import UserError
from pintern.report.accounting import TokenCount, break_even_requests, cost_per_request
from pintern.studies import statistics
from pintern.studies.ledger import Line
from pintern.studies.study import Study


@dataclasses.dataclass(frozen=True)
class Result:
    """One arm on one task with one model.

    Attributes:
      task: name.
      model: name.
      arm: name.
      factors: of its row.
      lines: its cells, by seed.
      scores: of each seed, 0 to 100.
      examples: mean score of the examples, which is the score itself but for corpus metrics (BLEU).
      interval: 95 % bounds of `examples` over the test examples.
      spread: standard deviation of `scores`; None for one seed.
      difference: mean paired difference from the reference arm, over examples; None for itself and
        where there is no reference.
      p: of that difference, Holm-corrected over the arms of its task and model.
      internalisation: (score − none) / (prompted − none), or None.
      break_even: requests after which training has paid for itself against the prompted arm, and
      break_even_cached: against it with its prefix cached; None where it never does or isn't known.
    """

    task: str
    model: str
    arm: str
    factors: Mapping[str, str | float]
    lines: Mapping[int, Line]
    scores: Mapping[int, float]
    examples: float
    interval: tuple[float, float]
    spread: float | None
    difference: float | None = None
    p: float | None = None
    internalisation: float | None = None
    break_even: float | None = None
    break_even_cached: float | None = None

    @property
    def score(self) -> float:
        """Mean over seeds."""
        return float(np.mean(list(self.scores.values())))

    @property
    def is_corpus(self) -> bool:
        """Whether the score is the corpus's (BLEU) and not the mean of its examples', as which
        `interval` and `difference` are told."""
        return abs(self.examples - self.score) > 0.05

    @property
    def first(self) -> Line:
        """The line of the first seed."""
        return next(iter(self.lines.values()))

    def mean(self, path: str) -> float | None:
        """Mean over seeds of a number in the lines, by its dotted name; None where any lacks it."""
        values = [dig(line, path) for line in self.lines.values()]
        known = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        return float(np.mean(known)) if known and len(known) == len(values) else None


def dig(line: Any, path: str) -> Any:
    """A value by its dotted name, or None; a part may hold dots itself (a slice `v1.0`)."""
    if not isinstance(line, Mapping):
        return None
    if path in line:
        return line[path]
    names = path.split(".")
    for count in range(1, len(names)):
        first = ".".join(names[:count])
        if first in line:
            return dig(line[first], ".".join(names[count:]))
    return None


def results_of(study: Study, lines: Sequence[Line], workdir: Path) -> list[Result]:
    """Records in the study's order, each task and model together."""
    found: list[Result] = []
    for task in study.tasks:
        for model in study.models:
            here = [line for line in lines if line["task"] == task and line["model"] == model]
            found += _group(study, here, workdir)
    return found


def read_predictions(line: Line, workdir: Path) -> list[dict[str, Any]]:
    """Answers of a cell, in the test set's order.

    Raises:
      UserError: the file that the ledger names is gone.
    """
    path = workdir / line["predictions"]
    if not path.exists():
        raise UserError(
            f"{path} is gone, which the ledger's line of {line['cell']} needs.",
            "Put it back, or take that line out of ledger.jsonl and run the study again.",
        )
    # Not `splitlines`: an answer may hold other characters that it takes for line ends.
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def _group(study: Study, lines: Sequence[Line], workdir: Path) -> list[Result]:
    by_arm: dict[str, list[Line]] = {}
    for line in lines:
        by_arm.setdefault(line["arm"], []).append(line)
    metrics = {line["metric"] for line in lines}
    if len(metrics) > 1:
        raise UserError(
            f"Arms on {lines[0]['task']} were scored by {', '.join(sorted(metrics))}.",
            "Compare arms by one metric.",
        )
    scores = {
        arm: {line["seed"]: example_scores(read_predictions(line, workdir)) for line in cells}
        for arm, cells in by_arm.items()
    }
    found = {arm: _result(cells, scores[arm]) for arm, cells in by_arm.items()}
    if study.reference in scores:
        others = [arm for arm in found if arm != study.reference]
        paired = {arm: by_every_seed(study, arm, found) for arm, found in scores.items()}
        differences = [
            statistics.paired_differences(paired[arm], paired[study.reference]) for arm in others
        ]
        ps = statistics.holm([statistics.permutation_p(values) for values in differences])
        for arm, values, p in zip(others, differences, ps, strict=True):
            difference = float(np.mean(values)) if values else None
            found[arm] = dataclasses.replace(found[arm], difference=difference, p=p)
    return [_against_prompt(study, result, found) for result in found.values()]


def by_every_seed(study: Study, arm: str, scores: statistics.Scores) -> statistics.Scores:
    """An arm's scores to be paired by seed; of a row that is run once they hold for every seed."""
    once = any(row.once and row.make(study.seeds[0]).name == arm for row in study.rows)
    return statistics.at_every_seed(scores, study.seeds) if once else scores


def _result(cells: Sequence[Line], scores: statistics.Scores) -> Result:
    first = cells[0]
    values = {line["seed"]: line["score"] for line in cells}
    return Result(
        task=first["task"],
        model=first["model"],
        arm=first["arm"],
        factors=first["factors"],
        lines={line["seed"]: line for line in cells},
        scores=values,
        examples=float(np.mean([np.mean(list(s.values())) for s in scores.values()])),
        interval=statistics.interval(scores),
        spread=statistics.seed_spread(list(values.values())),
    )


def _against_prompt(study: Study, result: Result, found: Mapping[str, Result]) -> Result:
    """Adds what needs the arms without and with the prompt."""
    changes: dict[str, Any] = {}
    none, prompted = found.get(study.none), found.get(study.prompted)
    if none and prompted and prompted.score != none.score and result not in (none, prompted):
        changes["internalisation"] = (result.score - none.score) / (prompted.score - none.score)
    training = result.mean("training_cost")
    if prompted and training:
        cost = result.mean("cost_per_1000_requests") / 1000
        parts = {k: prompted.mean(f"tokens.{k}") for k in ("template", "examples", "query")}
        tokens = TokenCount(**parts, output=prompted.mean("tokens.output"))
        for field, cached in (("break_even", False), ("break_even_cached", True)):
            price = cost_per_request(tokens, study.prices, cached_prefix=cached)
            changes[field] = break_even_requests(training, price, cost)
    return dataclasses.replace(result, **changes)


def example_scores(predictions: Sequence[Mapping[str, Any]]) -> dict[Hashable, float]:
    """Score by query and gold answer, numbered where a test set has the same twice."""
    found: dict[Hashable, float] = {}
    times: dict[tuple[str, str], int] = {}
    for answer in predictions:
        asked = answer["query"], answer["gold"]
        times[asked] = times.get(asked, 0) + 1
        found[(*asked, times[asked])] = answer["score"]
    return found
