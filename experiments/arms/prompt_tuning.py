"""Prompt tuning (PT, 2104.08691, 2302.11521): learned vectors in front of the query.

python -m pintern.train --config=experiments/arms/prompt_tuning.py --workdir=runs/pt
"""

from ml_collections import ConfigDict

from experiments.arms.base import constant, soft_prompt_alone


def get_config() -> ConfigDict:
    """Soft prompt; query in training and at inference; cross-entropy."""
    return soft_prompt_alone(constant("prompt tuning"))
