"""Fields of a config that must fit together; `pintern.config.validate` calls these."""

from __future__ import annotations

from ml_collections import ConfigDict

from pintern.errors import UserError


def check_losses(config: ConfigDict) -> None:
    """Refuses a config that has something to learn and nothing to learn it from.

    Raises:
      UserError: names the fields that contradict each other.
    """
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
