"""Instruction prompt tuning (IPT, 2302.11521): learned vectors, a retrieved example, the query.

python -m pintern.train --config=experiments/arms/ipt.py --workdir=runs/ipt
"""

from ml_collections import ConfigDict

from experiments.arms.base import constant, soft_prompt_alone


def get_config() -> ConfigDict:
    """Soft prompt; one example and the query in training and at inference; cross-entropy."""
    config = soft_prompt_alone(constant("IPT", shots=1))
    config.eval.shots = 1
    return config
