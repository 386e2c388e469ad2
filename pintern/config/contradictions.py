"""Fields of a config that must fit together."""

from __future__ import annotations

from ml_collections import ConfigDict

from pintern.config.fields import default_config
from pintern.errors import UserError


def check_contradictions(config: ConfigDict) -> None:
    """Refuses fields that contradict each other, or that nothing would look at.

    Raises:
      UserError: names the fields and the mend.
    """
    if config.adapter.init_from and config.adapter.soft_prompt_init == "file":
        raise UserError(
            "config.adapter.init_from and config.adapter.soft_prompt_file would both set the soft "
            "prompt.",
            "Leave config.adapter.soft_prompt_init at another value than 'file'.",
        )
    _check_prompt(config.prompt)
    _check_chat(config.task)
    _check_losses(config)
    if config.eval.samples > 1 and not config.eval.temperature:
        raise UserError(
            f"config.eval.samples is {config.eval.samples} at config.eval.temperature=0: all would "
            "be the same.",
            "Set config.eval.temperature (e.g. 0.8), or config.eval.samples=1.",
        )
    if config.train.batch_rows % config.train.accumulate:
        raise UserError(
            f"config.train.batch_rows={config.train.batch_rows} is not a multiple of "
            f"config.train.accumulate={config.train.accumulate}."
        )


def _check_prompt(prompt: ConfigDict) -> None:
    """Refuses a choice that lacks its model."""
    for field, user in (
        ("llmlingua_model", ("compressor", "llmlingua2")),
        ("sentence_model", ("retriever", "sentence_transformers")),
        ("sentence_model", ("similarity", "sentence_transformers")),
    ):
        if not prompt[field] and prompt[user[0]] == user[1]:
            raise UserError(
                f"config.prompt.{field} is empty, but config.prompt.{user[0]} is {user[1]!r}.",
                "Give a folder or a name on the hub.",
            )


def _check_chat(task: ConfigDict) -> None:
    """Refuses formats of pieces where the checkpoint's chat template gives them."""
    if not task.chat:
        return
    defaults = default_config().task
    for field in ("query_format", "completion_format", "example_end"):
        if task[field] != defaults[field]:
            raise UserError(
                f"config.task.{field} is {task[field]!r}, but with config.task.chat the "
                "checkpoint's chat template takes its place.",
                "Leave it out, or set config.task.chat=False.",
            )


def _check_losses(config: ConfigDict) -> None:
    """Refuses a config that has something to learn and nothing to learn it from."""
    train, distill = config.train, config.distill
    if distill.unlabelled and not distill.weight:
        raise UserError(
            f"config.distill.unlabelled is {distill.unlabelled}, but config.distill.weight "
            "is 0: without distillation nothing is learned from them.",
            "Set config.distill.weight (e.g. 1.0), or config.distill.unlabelled=0.",
        )
    if distill.weight and not distill.labelled and not distill.unlabelled:
        raise UserError(
            "config.distill.labelled is False and config.distill.unlabelled is 0: the teacher "
            "would be asked nothing.",
            "Set one of them, or config.distill.weight=0.",
        )
    if train.ce_weight:
        return
    for unfit, name in (
        (not distill.weight, f"distill.weight is {distill.weight:g}"),
        (distill.teacher == "first_stage", "distill.teacher is 'first_stage', which learns by it"),
        (train.prompt_loss_weight > 0, "train.prompt_loss_weight is a part of it"),
    ):
        if unfit:
            raise UserError(
                f"config.train.ce_weight is 0 (no cross-entropy), but config.{name}.",
                "Distillation alone has config.distill.weight above 0, a 'base' teacher and no "
                "prompt loss.",
            )
