"""PromptIntern with a prompted teacher, on labelled pairs and on queries of the log.

python -m pintern.train --config=experiments/arms/promptintern_distillation.py --workdir=runs/ours
"""

from ml_collections import ConfigDict

from experiments.arms.base import SHOTS, progressive


def get_config() -> ConfigDict:
    """LoRA; by schedule in training, the query at inference; cross-entropy and KL."""
    config = progressive("PromptIntern + distillation")
    config.distill.weight = 1.0
    config.distill.teacher = "first_stage"
    config.distill.shots = SHOTS
    config.distill.unlabelled = 1200
    return config
