"""Direct fine-tuning: the adapter never sees the prompt.

python -m pintern.train --config=experiments/arms/direct_fine_tuning.py --workdir=runs/direct
"""

from ml_collections import ConfigDict

from experiments.arms.base import constant


def get_config() -> ConfigDict:
    """LoRA; query in training and at inference; cross-entropy."""
    return constant("direct fine-tuning")
