"""The teacher: the same base, adapter off, full prompt on. It answers the log's queries.

Distillation needs no labels: what the prompted model answers to a query, and how sure it is of each
token, is what its prompt-less student learns (context distillation, 2209.15189; here beside the
curriculum). The answers are written to the run's folder once and read back when it resumes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pintern.assemble import Parts, check_context, split_decoder
from pintern.errors import UserError
from pintern.evaluation.decode import Generator, Sampling
from pintern.prompts.task import Example
from pintern.training.workdir import write_atomically


def answer_log(
    parts: Parts, workdir: Path, *, progress: Callable[[int], None] | None = None
) -> list[Example]:
    """Queries of the log with the prompted base's greedy completions.

    Which queries: `config.distill.unlabelled` of them, drawn by the seed.
    """
    path = workdir / "teacher.jsonl"
    if path.exists():
        return [Example(**json.loads(line)) for line in path.read_text().splitlines()]
    config, prompts = parts.config, parts.prompts
    wanted = config.distill.unlabelled
    log = prompts.task.unlabelled
    if wanted > len(log):
        raise UserError(
            f"config.distill.unlabelled asks for {wanted} queries; the task's log has {len(log)}.",
            "Lower it, or give more (config.task.unlabelled).",
        )
    drawn = sorted(np.random.default_rng([config.seed, 3]).permutation(len(log))[:wanted])
    asked = [Example(query=log[i], completion="", id=f"log-{i}") for i in drawn]
    generator = Generator(
        *split_decoder(parts.checkpoint),
        None,
        prompts.prefix(1.0),
        Sampling(config.eval.max_new_tokens, parts.tokenizer.eos),
    )
    rows = prompts.request_rows(asked, config.distill.shots)
    longest = max(range(len(rows)), key=lambda i: len(rows[i].tokens))
    check_context(
        parts,
        len(prompts.prefix(1.0)),
        len(rows[longest].tokens) + config.eval.max_new_tokens,
        f"Query {asked[longest].id} in the teacher's prompt",
    )
    made = generator(
        [row.tokens for row in rows], batch_rows=config.eval.batch_rows, progress=progress
    )
    answered = [
        dataclasses.replace(example, completion=parts.tokenizer.decode(ids).strip())
        for example, ids in zip(asked, made, strict=True)
    ]
    answered = [example for example in answered if example.completion]
    write_atomically(path, "".join(json.dumps(dataclasses.asdict(e)) + "\n" for e in answered))
    return answered
