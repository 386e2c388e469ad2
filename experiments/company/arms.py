"""The arms that the company task compares, at equal optimizer steps over the same pairs."""

from experiments.arms import (
    abrupt_drop,
    direct_fine_tuning,
    icl,
    icl_cached,
    promptintern,
    promptintern_distillation,
    zero_shot,
)
from pintern.arms import Arm, arm_of

FULL = "base, full prompt"
CACHED = "base, full prompt, prefix cached"
OURS = "PromptIntern + distillation"


def company_arms(seed: int) -> list[Arm]:
    """Seven rows: three of the base model, four trained."""
    return [
        arm_of(zero_shot.get_config(), seed=seed, name="base, query only"),
        arm_of(icl.get_config(), seed=seed, name=FULL),
        arm_of(icl_cached.get_config(), seed=seed, name=CACHED, scored_as=FULL),
        *(
            arm_of(file.get_config(), seed=seed)
            for file in (direct_fine_tuning, abrupt_drop, promptintern, promptintern_distillation)
        ),
    ]
