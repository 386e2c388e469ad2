"""Rows that several studies have, made of the thirteen arms' configs."""

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from experiments.arms import (
    abrupt_drop,
    compressed_prompt,
    context_distillation,
    direct_fine_tuning,
    full_prompt_fine_tuning,
    hybrid,
    icl,
    icl_cached,
    ipt,
    prompt_tuning,
    promptintern,
    promptintern_distillation,
    zero_shot,
)
from pintern.arms import Arm, arm_of
from pintern.errors import UserError
from pintern.studies.study import Measure, Row, lay_over

ZERO_SHOT, ICL, DIRECT = "zero-shot", "ICL", "direct fine-tuning"
PROMPTINTERN, OURS = "PromptIntern", "PromptIntern + distillation"

Configs = Callable[[], ConfigDict]

ARMS: dict[str, Configs] = {
    file.get_config().name: file.get_config
    for file in (
        zero_shot,
        icl,
        icl_cached,
        compressed_prompt,
        prompt_tuning,
        ipt,
        direct_fine_tuning,
        full_prompt_fine_tuning,
        abrupt_drop,
        promptintern,
        context_distillation,
        promptintern_distillation,
        hybrid,
    )
}
"""Name to config, in the ledger's order."""


def row(
    arm: str,
    changes: Mapping[str, object] | None = None,
    *,
    name: str = "",
    factors: Mapping[str, str | float] | None = None,
    measures: tuple[Measure, ...] = (),
    once: bool = True,
) -> Row:
    """One of the thirteen arms, with fields changed by their dotted names.

    Args:
      arm: its name in `ARMS`.
      changes: of its config.
      name: in place of its own.
      factors: what the row varies.
      measures: of this row alone.
      once: run an arm that trains nothing at one seed only; False where seeds split the data too.

    Raises:
      UserError: no arm of that name, or see `lay_over`.
    """
    if arm not in ARMS:
        raise UserError(f"No arm is named {arm!r}.", f"There are: {', '.join(ARMS)}.")

    def make(seed: int) -> Arm:
        config = ARMS[arm]()
        lay_over(config, changes or {})
        return arm_of(config, seed=seed, name=name)

    once = once and not make(0).trained
    return Row(make, dict(factors or {}), once=once, measures=measures)
