"""Full-prompt fine-tuning: the adapter works behind the prompt, and needs it at inference.

python -m pintern.train --config=experiments/arms/full_prompt_fine_tuning.py --workdir=runs/full
"""

from ml_collections import ConfigDict

from experiments.arms.base import SHOTS, constant


def get_config() -> ConfigDict:
    """LoRA; the whole prompt in training and at inference; cross-entropy."""
    config = constant("full-prompt fine-tuning", keep_rate=1.0, shots=SHOTS)
    config.eval.keep_rate = 1.0
    config.eval.shots = SHOTS
    return config
