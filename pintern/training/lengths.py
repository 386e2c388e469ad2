"""Refuses, before anything is trained, a run of which some prompt is longer than the context."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from pintern.assemble import Parts, check_context
from pintern.errors import UserError
from pintern.prompts.pipeline import Prompts
from pintern.prompts.task import Example


def check_lengths(parts: Parts, answered: Sequence[Example] = ()) -> None:
    """Checks every level of the curriculum, and the teacher's prompt where there is a teacher.

    Args:
      parts: of the run.
      answered: queries that the teacher answered, which are trained on beside the labelled pairs.

    Raises:
      UserError: names the example, its length and the limit; or see `check_shots`.
    """
    config, prompts = parts.config, parts.prompts
    check_shots(config, prompts)
    virtual = config.adapter.soft_prompt
    probed = config.eval.max_new_tokens if prompts.curriculum.adaptive else 0
    for level in prompts.curriculum.levels:
        where = f"at τ={level.keep_rate:g} with {level.shots} shots"
        prefix = len(prompts.prefix(level.keep_rate)) + virtual
        _check(parts, answered, level.shots, prefix, probed, where)
    if config.distill.weight > 0:
        adapted = config.distill.teacher == "first_stage"
        prefix = len(prompts.prefix(1.0)) + (virtual if adapted else 0)
        _check(parts, answered, config.distill.shots, prefix, 0, "in the teacher's prompt")


def check_shots(config: ConfigDict, prompts: Prompts) -> None:
    """Refuses more examples in a prompt than there are other labelled pairs.

    Raises:
      UserError: names the field that asks for them, and how many there are.
    """
    listed = "curriculum.shots" if config.curriculum.shots else "prompt.max_shots"
    asked = {listed: max(level.shots for level in prompts.curriculum.levels)}
    if config.distill.weight > 0:
        asked["distill.shots"] = config.distill.shots
    pairs = len(prompts.pool)
    for field, shots in asked.items():
        if shots >= pairs:
            raise UserError(
                f"config.{field} asks for {shots} examples in front of a query; there are {pairs} "
                "labelled pairs, none of which is shown to itself.",
                f"Set at most {pairs - 1}, or give more pairs.",
            )


def _check(
    parts: Parts, answered: Sequence[Example], shots: int, prefix: int, new: int, where: str
) -> None:
    """The longest row of one prompt; `new` tokens may be generated in place of a completion."""
    prompts = parts.prompts
    names = [f"Training example {i + 1}" for i in range(len(prompts.pool))]
    names += [f"Query {example.id} with the teacher's answer" for example in answered]
    pieces = [*prompts.pool, *prompts.renderer.pieces(answered)]
    found = [
        *prompts.shots_for_pool(shots),
        *prompts.shots_for_log([example.query for example in answered], shots),
    ]
    rows = [prompts.renderer.row(*each) for each in zip(pieces, found, strict=True)]
    lengths = [max(len(row.tokens), row.start + new) for row in rows]
    longest = int(np.argmax(lengths))
    row, name = rows[longest], f"{names[longest]} {where}"
    if len(row.tokens) == lengths[longest]:
        check_context(parts, prefix, len(row.tokens), name)
    else:
        check_context(parts, prefix, row.start, name, new=new)
