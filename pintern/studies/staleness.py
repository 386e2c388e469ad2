"""What happens when the prompt is edited after it was internalised, and how soon it is mended.

The prompt's owner changes a line (a metric is redefined). The adapter goes on answering by the old
line. It is then trained further, from where it is, with the edited prompt before the teacher; the
labelled pairs that the edit has made wrong are left out, so that the new line can come from the
prompt alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from pintern.adapters.adapter import Adapter
from pintern.arms import StoppedError
from pintern.assemble import Parts
from pintern.config import default_config
from pintern.errors import UserError
from pintern.evaluation.run import InferencePrompt, evaluate
from pintern.files import write_atomically
from pintern.interop.write import Export, write_export
from pintern.prompts.task import Example
from pintern.studies.diagnostics import FULL, with_task
from pintern.studies.study import Done, lay_over
from pintern.training.loop import train
from pintern.training.restore import restore_run


@dataclasses.dataclass(frozen=True)
class Edit:
    """A change of the prompt, and what it makes of gold answers.

    Attributes:
      line: text of the template.
      new_line: what stands there afterwards.
      answer: part of a gold answer that follows from the line: examples with it are affected.
      new_answer: what it becomes.
      words: a query with one of these may be affected; tells which of the log are asked anew.
    """

    line: str
    new_line: str
    answer: str
    new_answer: str
    words: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Staleness:
    """Scores on the affected and on the other queries after an edit, and while it is mended.

    Attributes:
      edits: of the prompt.
      steps: of further training.
      every: steps between two points of the curve.
      learning_rate: of it, constant.
      queries: of the log, half of them (if there are as many) with a word of an edit.
      shots: examples in the full prompt.
      tolerance: points below the score before the edit that count as mended.
      max_other: unaffected test queries that are scored.
    """

    edits: tuple[Edit, ...]
    steps: int = 60
    every: int = 10
    learning_rate: float = 2e-3
    queries: int = 200
    shots: int = 2
    tolerance: float = 5.0
    max_other: int = 100
    name: str = "staleness"

    def __call__(self, done: Done) -> dict[str, Any]:
        """Scores `before` the edit (by the old answers), `stale` right after it, `prompted` (the
        base with the edited prompt), the `curve` over further steps, and `steps_to_mend`: the first
        of its points with the affected queries' score back; None if none has."""
        parts = done.measured.parts
        # Named by the settings: measured anew with other edits, it is another experiment.
        settings = hashlib.sha256(repr(self).encode()).hexdigest()[:8]
        folder = done.folder / f"staleness-{settings}"
        affected, other = self._write(parts, folder)
        config = self._config(parts, folder)
        edited = with_task(parts, _task_fields(config))
        # Files have no settings of a metric; both are to be judged alike.
        edited = _with(edited, metric_options=parts.prompts.task.metric_options)
        self._export(done, folder / "adapter")
        prompt = done.cell.arm.prompt
        old = [example for example in parts.prompts.task.test if self._changed(example)[1]]
        before = _score(_with(parts, test=tuple(old)), done.measured.adapter, prompt)

        def scores(adapter: Adapter | None, behind: InferencePrompt) -> dict[str, float]:
            return {
                "affected": _score(_with(edited, test=tuple(affected)), adapter, behind),
                "other": _score(_with(edited, test=tuple(other)), adapter, behind),
            }

        stale = scores(done.measured.adapter, prompt)
        curve = [{"step": 0, **stale}]
        if not train(config, folder / "run"):
            raise StoppedError(f"Stopped by a signal; {folder} is saved. Run again to go on.")
        # Those alone, since a signal's checkpoint stands wherever the run was stopped.
        for step in [*range(self.every, self.steps, self.every), self.steps]:
            _, adapter, _ = restore_run(folder / "run", config, step)
            curve.append({"step": step, **scores(adapter, prompt)})
        mended = [point["step"] for point in curve if point["affected"] >= before - self.tolerance]
        return {
            "affected_queries": len(affected),
            "other_queries": len(other),
            "before": before,
            "stale": stale,
            "prompted": scores(None, InferencePrompt(FULL, self.shots)),
            "curve": curve,
            "steps_to_mend": mended[0] if mended else None,
        }

    def _changed(self, example: Example) -> tuple[Example, bool]:
        """An example with its answer by the edited prompt, and whether that is another one."""
        answer, *references = example.completion, *example.references
        for edit in self.edits:
            answer = answer.replace(edit.answer, edit.new_answer)
            references = [text.replace(edit.answer, edit.new_answer) for text in references]
        changed = dataclasses.replace(example, completion=answer, references=tuple(references))
        return changed, answer != example.completion

    def _write(self, parts: Parts, folder: Path) -> tuple[list[Example], list[Example]]:
        """Writes the edited task's files; its affected test examples, and some of the others."""
        task = parts.prompts.task
        template = task.template
        for edit in self.edits:
            if edit.line not in template:
                raise UserError(
                    f"The template has no {edit.line!r} to edit.", "Mend `Staleness.edits`."
                )
            template = template.replace(edit.line, edit.new_line)
        changed = [self._changed(example) for example in task.test]
        affected = [example for example, is_changed in changed if is_changed]
        other = [example for example, is_changed in changed if not is_changed][: self.max_other]
        if not affected or not other:
            raise UserError(
                f"Of {len(changed)} test answers the edits change {len(affected)}.",
                "Choose edits that some queries need and others don't.",
            )
        if not task.unlabelled:
            raise UserError(
                f"Staleness asks queries of a log anew; task {task.name} has none.",
                "Give config.task.unlabelled, or leave the measure out.",
            )
        words = {word for edit in self.edits for word in edit.words}
        about = [query for query in task.unlabelled if words & set(query.split())]
        rest = [query for query in task.unlabelled if not words & set(query.split())]
        about = about[: self.queries // 2]
        log = [*about, *rest[: self.queries - len(about)]]
        unchanged = [example for example in task.train if not self._changed(example)[1]]
        files = {
            "template.txt": template,
            "train.jsonl": _jsonl(unchanged[: len(log)]),
            "test.jsonl": _jsonl([*affected, *other]),
            "log.jsonl": "".join(json.dumps({"query": query}) + "\n" for query in log),
        }
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_atomically(folder / name, text)
        return affected, other

    def _config(self, parts: Parts, folder: Path) -> ConfigDict:
        config, task = parts.config.copy_and_resolve_references(), parts.prompts.task
        if task.database is not None and not isinstance(task.database, str):
            raise UserError("Staleness needs a task with one database, or none.")
        log = (folder / "log.jsonl").read_bytes().count(b"\n")
        defaults = default_config()
        overrides = {
            f"{group}.{field}": value
            for group in ("task", "curriculum")
            for field, value in defaults[group].items()
        } | {
            "name": "staleness",
            "task.kind": "files",
            "task.chat": config.task.chat,
            "task.template": str(folder / "template.txt"),
            "task.train": str(folder / "train.jsonl"),
            "task.test": str(folder / "test.jsonl"),
            "task.unlabelled": str(folder / "log.jsonl"),
            "task.metric": task.metric,
            "task.database": task.database or "",
            "curriculum.schedule": "explicit",
            "curriculum.keep_rates": (0.0,),
            "curriculum.shots": (0,),
            "adapter.init_from": str(folder / "adapter"),
            "train.steps": self.steps,
            "train.learning_rate": self.learning_rate,
            "train.warmup": 0.0,
            "train.decay": "constant",
            "distill.weight": config.distill.weight or 1.0,
            "distill.teacher": "base",
            "distill.shots": self.shots,
            "distill.unlabelled": log,
            "checkpoint.every": self.every,
            "checkpoint.minutes": 0.0,
            "checkpoint.keep": self.steps + 1,
        }
        if not config.task.chat:
            overrides |= {
                "task.query_format": task.format.query,
                "task.completion_format": task.format.completion,
                "task.example_end": task.format.example_end,
            }
        lay_over(config, overrides)
        return config

    def _export(self, done: Done, out: Path) -> None:
        if out.exists():
            return
        parts, adapter = done.measured.parts, done.measured.adapter
        if adapter is None:
            raise UserError(f"{done.cell.name} trains nothing, so nothing in it gets stale.")
        fields = parts.config.adapter
        export = Export(
            adapter=adapter,
            checkpoint=parts.checkpoint,
            base_name=parts.config.model.path,
            alpha=fields.alpha,
            rank_stabilised=fields.rank_stabilised,
            dtype=jnp.float32,
        )
        write_export(out, "peft" if adapter.lora else "soft_prompt", export, "")


def _task_fields(config: ConfigDict) -> dict[str, Any]:
    return {f"task.{field}": value for field, value in config.task.items()}


def _with(parts: Parts, **changes: Any) -> Parts:
    """The same with fields of the task changed."""
    task = dataclasses.replace(parts.prompts.task, **changes)
    return dataclasses.replace(parts, prompts=dataclasses.replace(parts.prompts, task=task))


def _score(parts: Parts, adapter: Adapter | None, prompt: InferencePrompt) -> float:
    return evaluate(parts, adapter, prompt).scores.value


def _jsonl(examples: Sequence[Example]) -> str:
    return "".join(json.dumps(dataclasses.asdict(example)) + "\n" for example in examples)
