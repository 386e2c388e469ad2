"""LoRA and a soft prompt together: part of the prompt goes into weights, part into vectors.

    python -m pintern.train --config=experiments/arms/hybrid.py --workdir=runs/hybrid

It is PromptIntern with eight learned vectors that stay. For the KL of PromptIntern + distillation
add `--config.distill.weight=1`.
"""

from ml_collections import ConfigDict

from experiments.arms.base import progressive


def get_config() -> ConfigDict:
    """LoRA and soft prompt; by schedule in training, soft prompt and query at inference; CE."""
    config = progressive("hybrid")
    config.adapter.soft_prompt = 8
    return config
