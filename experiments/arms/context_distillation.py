"""Context distillation (2209.15189): the query alone, taught by the same base behind the prompt.

    python -m pintern.train --config=experiments/arms/context_distillation.py --workdir=runs/cd

The teacher (adapter off) speaks on the labelled completions, whose labels count for nothing else,
and on its own answers to queries of the log. `--config.distill.labelled=False` leaves the latter,
`--config.distill.unlabelled=0` the former.
"""

from ml_collections import ConfigDict

from experiments.arms.base import SHOTS, constant


def get_config() -> ConfigDict:
    """LoRA; query in training and at inference; KL to the prompted base and nothing else."""
    config = constant("context distillation")
    config.train.ce_weight = 0.0
    config.distill.weight = 1.0
    config.distill.teacher = "base"
    config.distill.shots = SHOTS
    config.distill.unlabelled = 1200
    return config
