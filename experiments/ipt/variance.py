r"""How far prompt tuning's seeds lie apart (2302.11521, finding 2), by length and initialisation.

    python -m pintern.population --config=experiments/ipt/variance.py --workdir=runs/variance \
        --evaluate

All members of `VARY` train at once; --vary=FIELD=VALUE,… in its place names others. The length is a
shape, which members share: run it again with --config.adapter.soft_prompt=100 and another folder.
"""

from ml_collections import ConfigDict

from experiments.arms.base import constant, soft_prompt_alone

# Prompt tuning depends on these as much as on its data, so that they are swept, not set.
VARY = {
    "seed": (0, 1, 2, 3, 4),
    "train.learning_rate": (1e-2, 3e-2),
    "adapter.soft_prompt_init": ("uniform", "vocabulary"),
}


def get_config() -> ConfigDict:
    """Twenty-five virtual tokens on the company task, the query behind them, no LoRA."""
    config = soft_prompt_alone(constant("prompt tuning"))
    config.adapter.soft_prompt = 25
    return config
