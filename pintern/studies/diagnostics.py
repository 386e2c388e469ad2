"""Measurements of a cell beyond its score: what a study names in `measures`.

Each is a frozen dataclass; what it returns stands in the ledger under `measures.<name>`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from pintern.adapters.adapter import Adapter
from pintern.assemble import Parts, assemble
from pintern.config import fingerprint, validate
from pintern.evaluation.latency import measure_latency
from pintern.evaluation.run import InferencePrompt, evaluate, make_generator, test_rows
from pintern.studies.divergence import divergence, negative_log_likelihood
from pintern.studies.study import Cell, Done, Overrides, cells_of, lay_over
from pintern.training.restore import stage_adapters

FULL = 1.0


@dataclasses.dataclass(frozen=True)
class KLToPrompted:
    """KL(base with the full prompt ‖ the arm at inference), nats per token of the gold completions.

    Taken of the untrained model, at the end of every stage (with `config.checkpoint.stages`), and
    of the trained one.

    Attributes:
      shots: examples in the full prompt.
      examples: of the test set, from its start.
    """

    shots: int = 2
    examples: int = 64
    name: str = "kl"

    def __call__(self, done: Done) -> dict[str, Any]:
        """`untrained`, `stages` (each `step` and `kl`) and `final`."""
        parts, prompt = done.measured.parts, done.cell.arm.prompt

        def kl(adapter: Adapter | None) -> float:
            return divergence(
                parts,
                (None, InferencePrompt(FULL, self.shots)),
                (adapter, prompt),
                parts.prompts.task.test[: self.examples],
            )

        return {
            "untrained": kl(None),
            "stages": [
                {"step": step, "kl": kl(adapter)}
                for step, adapter in stage_adapters(done.folder, parts)
            ],
            "final": kl(done.measured.adapter),
        }


@dataclasses.dataclass(frozen=True)
class Forgetting:
    """Another task, behind its own full prompt, before the training and after.

    Attributes:
      task: what makes the other task of the cell's config, by dotted names.
      shots: examples in its prompt.
      examples: of its test set.
    """

    task: tuple[tuple[str, Any], ...]
    shots: int = 2
    examples: int = 100
    name: str = "forgetting"

    def __call__(self, done: Done) -> dict[str, Any]:
        """Score and nats per gold token, `before` and `after`, and the score's `change`."""
        parts = with_task(done.measured.parts, {**dict(self.task), "task.max_test": self.examples})
        prompt = InferencePrompt(FULL, self.shots)
        found: dict[str, Any] = {}
        for when, adapter in (("before", None), ("after", done.measured.adapter)):
            score = evaluate(parts, adapter, prompt).scores.value
            nats = negative_log_likelihood(parts, adapter, prompt, parts.prompts.task.test)
            found[when] = {"score": score, "nats": nats}
        return {**found, "change": found["after"]["score"] - found["before"]["score"]}


@dataclasses.dataclass(frozen=True)
class Transfer:
    """The trained adapter on all of the study's tasks, as the arm's cell there would be scored.

    Attributes:
      shots: of the target task's examples, in place of the arm's own number.
      name: begins with `transfer`; one that changes the shots needs a name of its own.
    """

    shots: int | None = None
    name: str = "transfer"

    def __call__(self, done: Done) -> dict[str, Any]:
        """`scores`: task to score, its own among them; `shots`; and by which `configs`, so that a
        report leaves out what was scored on a task that the study has changed since."""
        parts, own = done.measured.parts, done.cell
        scores, configs = {}, {}
        for cell in cells_of(done.study):
            if cell.name != dataclasses.replace(own, task=cell.task).name:
                continue
            prompt = self._prompt(cell)
            if cell.task == own.task and prompt == own.arm.prompt:
                found = done.measured.evaluation
            else:
                # Of the target's own config: what the source's task sets has no place there.
                there = assemble(cell.arm.config, base=(parts.checkpoint, parts.tokenizer))
                found = evaluate(there, done.measured.adapter, prompt)
            scores[cell.task] = found.scores.value
            configs[cell.task] = fingerprint(cell.arm.config)
        return {"scores": scores, "shots": self._prompt(own).shots, "configs": configs}

    def _prompt(self, cell: Cell) -> InferencePrompt:
        prompt = cell.arm.prompt
        return prompt if self.shots is None else dataclasses.replace(prompt, shots=self.shots)


@dataclasses.dataclass(frozen=True)
class ServingLatency:
    """Seconds of single requests, prefill and decode apart.

    Cells are timed one by one, so that figures of a busy machine compare loosely; the quickstart
    times its arms in turns.

    Attributes:
      requests: how many of the test set.
    """

    requests: int = 20
    name: str = "latency"

    def __call__(self, done: Done) -> dict[str, Any]:
        """The fields of `report.accounting.Latency`."""
        parts, prompt = done.measured.parts, done.cell.arm.prompt
        rows = test_rows(parts, prompt)
        generator = make_generator(parts, done.measured.adapter, prompt)
        requests = min(self.requests, len(rows))
        found = measure_latency({"it": (generator, rows)}, requests=requests)
        return dataclasses.asdict(found["it"])


def with_task(parts: Parts, overrides: Overrides) -> Parts:
    """The same model with another task's prompts and test set.

    Raises:
      UserError: an unknown field, or a task that can't be read.
    """
    config = parts.config.copy_and_resolve_references()
    lay_over(config, overrides)
    validate(config, recorded=True)
    return assemble(config, base=(parts.checkpoint, parts.tokenizer))
