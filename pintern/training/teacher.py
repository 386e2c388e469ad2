"""The teacher: the same base with the full prompt on. It answers the log's queries.

Its adapter is off (`config.distill.teacher = "base"`), or it is the student itself as the first
stage leaves it (`first_stage`), which read the full prompt and was fitted to the labelled pairs.
Distillation needs no labels: what the prompted model answers to a query, and how sure it is of each
token, is what its prompt-less student learns (context distillation, 2209.15189; here beside the
curriculum). The answers are written to the run's folder once and read back when it resumes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from pintern.adapters.adapter import Adapter
from pintern.assemble import Parts, check_context, split_decoder
from pintern.curriculum import AdaptiveState
from pintern.distributed import from_first, is_first
from pintern.errors import UserError
from pintern.evaluation.decode import Generator
from pintern.evaluation.run import sampling_of
from pintern.files import write_atomically
from pintern.models.shared_prefix import prefill
from pintern.prompts.task import Example, parse_records
from pintern.prompts.text import read_text
from pintern.training.checkpoint import Checkpoints
from pintern.training.step import Teacher, TrainState


def base_teacher(parts: Parts) -> Teacher:
    """The base model behind the full prompt."""
    return _teacher(parts, None)


def first_stage_teacher(parts: Parts, workdir: Path, step: int, state: TrainState) -> Teacher:
    """The student as the first stage left it, behind the full prompt.

    It is kept in `teacher/`: a run that is resumed later than `step` has moved on from it.

    Args:
      parts: of the run.
      workdir: its folder.
      step: where the run is.
      state: as it is now; the teacher's, unless one was kept before.
    """
    kept = Checkpoints(workdir / "teacher", keep=1)
    if kept.latest is None:
        kept.save(step, state, AdaptiveState())
    # Read back in any case: the next step donates the buffers of `state`.
    _, state, _ = kept.restore(state)
    kept.close()
    return _teacher(parts, state.adapter)


def _teacher(parts: Parts, adapter: Adapter | None) -> Teacher:
    tokens = jnp.asarray(parts.prompts.prefix(1.0), jnp.int32)[None]
    prefix = prefill(parts.checkpoint.decoder, tokens, jnp.ones_like(tokens), adapter=adapter)
    return Teacher(adapter, prefix)


def check_distillation(parts: Parts) -> None:
    """Checks, before anything is trained, that there will be a teacher and that it can read.

    Raises:
      UserError: a curriculum without a first stage to take the teacher from, fewer queries in the
        log than asked for, or a query that is longer than the context behind the full prompt.
    """
    config, prompts = parts.config, parts.prompts
    if not config.distill.weight:
        return
    adapted = config.distill.teacher == "first_stage"
    if adapted and len(set(prompts.curriculum.levels)) == 1:
        raise UserError(
            "config.distill.teacher is 'first_stage', but the curriculum has one level: no stage "
            "comes after the first.",
            "Give it more (config.curriculum.stages), or set config.distill.teacher='base'.",
        )
    asked = _drawn_queries(parts)
    if not asked:
        return
    rows = prompts.log_rows(asked, config.distill.shots)
    longest = max(range(len(rows)), key=lambda i: len(rows[i].tokens))
    check_context(
        parts,
        len(prompts.prefix(1.0)) + (config.adapter.soft_prompt if adapted else 0),
        len(rows[longest].tokens),
        f"Query {asked[longest].id} in the teacher's prompt",
        new=config.eval.max_new_tokens,
    )


def answer_log(
    parts: Parts,
    workdir: Path,
    adapter: Adapter | None,
    *,
    progress: Callable[[int], None] | None = None,
) -> list[Example]:
    """Queries of the log with the greedy completions of the teacher that has this adapter on.

    Which queries: `config.distill.unlabelled` of them, drawn by the seed.

    Raises:
      UserError: those that were kept are damaged, or see `_drawn_queries`.
    """
    path = workdir / "teacher.jsonl"
    known = from_first(lambda: _kept_answers(path))
    if known is not None:
        return [Example(**record) for record in known]
    config, prompts = parts.config, parts.prompts
    asked = _drawn_queries(parts)
    generator = Generator(
        *split_decoder(parts.checkpoint),
        adapter,
        prompts.prefix(1.0),
        sampling_of(parts),
    )
    made = generator(
        [row.tokens for row in prompts.log_rows(asked, config.distill.shots)],
        batch_rows=config.eval.batch_rows,
        progress=progress,
    )
    answered = [
        dataclasses.replace(example, completion=parts.tokenizer.decode(ids).strip())
        for example, ids in zip(asked, made, strict=True)
    ]
    answered = [example for example in answered if example.completion]
    if len(answered) < len(asked) and is_first():
        empty = len(asked) - len(answered)
        print(f"The teacher's answer to {empty} of {len(asked)} queries is empty; left out.")
    if answered:
        lines = "".join(json.dumps(dataclasses.asdict(e)) + "\n" for e in answered)
        from_first(lambda: write_atomically(path, lines))
    return answered


def _kept_answers(path: Path) -> list[dict[str, Any]] | None:
    """The answers that a run was begun with; None if there are none yet."""
    if not path.exists():
        return None
    required = ("query", "completion")
    return [record for _, record in parse_records(read_text(path), path, required)]


def _drawn_queries(parts: Parts) -> list[Example]:
    config, log = parts.config, parts.prompts.task.unlabelled
    wanted = config.distill.unlabelled
    if wanted > len(log):
        raise UserError(
            f"config.distill.unlabelled asks for {wanted} queries; the task's log has {len(log)}.",
            "Lower it, or give more (config.task.unlabelled).",
        )
    drawn = sorted(np.random.default_rng([config.seed, 3]).permutation(len(log))[:wanted])
    return [Example(query=log[i], completion="", id=f"log-{i}") for i in drawn]
