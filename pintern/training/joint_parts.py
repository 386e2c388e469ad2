"""The parts of a population's members: one base, and as many prompts as there have to be."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from pintern.assemble import Parts, assemble, load_base
from pintern.errors import UserError
from pintern.training.examples import check_examples
from pintern.training.lengths import check_lengths
from pintern.training.teacher import check_distillation
from pintern.training.workdir import check_base


def assemble_members(
    configs: Sequence[ConfigDict], workdirs: Sequence[Path], resumed: Sequence[bool]
) -> list[Parts]:
    """Each member's parts; base and ladder are made once, and retrieval too where it can be.

    Args:
      configs: of the members.
      workdirs: their folders; nothing but the first one's prompts is written before every member is
        checked.
      resumed: whose folder holds prompts already, perhaps edited by hand.

    Raises:
      UserError: prompts that are too long or differ between members, a teacher that can't be had,
        or a folder of another base or of other examples.
    """
    # Where members are batched, cuDNN's attention takes no mask.
    shared = load_base(configs[0], attention="xla")
    made: list[Parts] = []
    for config, workdir, again in zip(configs, workdirs, resumed, strict=True):
        # A fresh member's texts are the first one's, which lie in its folder by now.
        source = workdir if again or not made else workdirs[0]
        directory = source / "prompts" if again or made else None
        parts = assemble(config, prompts_directory=directory, base=shared)
        first = made[0] if made else parts
        _check_same_template(first, parts, workdirs[0], workdir)
        if (
            config.prompt.retriever != "random"  # alone it has a use for the seed
            and parts.prompts.task == first.prompts.task
            and parts.prompts.ladder == first.prompts.ladder
        ):
            parts = dataclasses.replace(parts, prompts=first.prompts)
        check_lengths(parts)
        check_distillation(parts)
        if not made:
            parts.prompts.write(workdir / "prompts")
        made.append(parts)
    for parts, workdir in zip(made, workdirs, strict=True):  # now that nothing is refused
        check_base(workdir, parts.checkpoint)
        check_examples(workdir, parts)
        parts.prompts.write(workdir / "prompts")
    if not any(resumed):
        print(made[0].prompts.schedule_table())
    for note in dict.fromkeys(parts.prompts.task.note for parts in made):
        if note:
            print(note)
    return made


def _check_same_template(first: Parts, other: Parts, folder: Path, workdir: Path) -> None:
    """All members read one teacher's prompt, so that an edited text must be edited in all."""
    for rate, rung in first.prompts.ladder.items():
        if other.prompts.ladder[rate].text != rung.text:
            raise UserError(
                f"The template at rate {rate:g} differs between {folder / 'prompts'} and "
                f"{workdir / 'prompts'}.",
                "Members of a population have the same prompts; edit both alike.",
            )
