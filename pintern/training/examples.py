"""Which examples a run learns from: one that is resumed has the same ones, in the same order.

A config names files, which may have changed since, and texts in `prompts/` may have been edited.
`examples.json` holds a digest of what was read: of the labelled pairs, of the templates, and of the
log's queries where a teacher answers them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pintern.assemble import Parts
from pintern.errors import UserError
from pintern.files import write_atomically
from pintern.prompts.retrievers.vectors import digest
from pintern.training.workdir import EXAMPLES, came_to_nothing, read_record, set_aside

TEMPLATES = "templates"


def check_examples(workdir: Path, parts: Parts) -> None:
    """Records what a new run learns from; refuses other examples for an old one.

    A run that has no record, or none of its templates, is from before there were any, and goes on
    with what it is given.

    Raises:
      UserError: says which examples are others, or that templates are.
    """
    path, examples = workdir / EXAMPLES, _learned(parts)
    found = {
        what: {"count": len(texts), "digest": digest(text for row in texts for text in row)}
        for what, texts in examples.items()
    }
    if path.exists():
        recorded = found | read_record(path, *(found.keys() - {TEMPLATES}))
        changed = [what for what in found if recorded[what] != found[what]]
        if not changed:
            return
        if not came_to_nothing(workdir):
            raise UserError(*_told(workdir, changed[0], recorded[changed[0]], found[changed[0]]))
        set_aside(workdir, "teacher.jsonl")  # it answers the queries that there were
    write_atomically(path, json.dumps(found, indent=2) + "\n")


def _learned(parts: Parts) -> dict[str, Sequence[tuple[str, ...]]]:
    task, distill = parts.prompts.task, parts.config.distill
    examples = {"labelled pairs": [(pair.query, pair.completion) for pair in task.train]}
    rates = sorted({level.keep_rate for level in parts.prompts.curriculum.levels})
    examples[TEMPLATES] = [(parts.prompts.rung(rate).text,) for rate in rates]
    if distill.weight and distill.unlabelled:
        examples["queries of the log"] = [(query,) for query in task.unlabelled]
    return examples


def _told(workdir: Path, what: str, then: dict, now: dict) -> tuple[str, str]:
    def shown(of: dict) -> str:
        return f"{of['count']} with digest {of['digest'][:12]}"

    if what == TEMPLATES:
        return (
            f"{workdir} was trained on other templates than it has now, in {workdir / 'prompts'}.",
            "Put the old texts back; or give the new ones to another --workdir as a ladder "
            "(config.prompt.ladder).",
        )
    return (
        f"{workdir} was trained on other {what} than the task has now: {shown(then)}, not "
        f"{shown(now)}.",
        "Give the same data in the same order (config.task), or use another --workdir.",
    )
