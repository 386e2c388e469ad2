"""Abrupt drop: trained behind the whole prompt, asked without it.

python -m pintern.train --config=experiments/arms/abrupt_drop.py --workdir=runs/abrupt
"""

from ml_collections import ConfigDict

from experiments.arms.base import SHOTS, constant


def get_config() -> ConfigDict:
    """LoRA; the whole prompt in training, the query at inference; cross-entropy."""
    return constant("abrupt drop", keep_rate=1.0, shots=SHOTS)
