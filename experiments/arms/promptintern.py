"""PromptIntern (2407.02211): the prompt is taken away stage by stage.

python -m pintern.train --config=experiments/arms/promptintern.py --workdir=runs/promptintern
"""

from ml_collections import ConfigDict

from experiments.arms.base import progressive


def get_config() -> ConfigDict:
    """LoRA; whole prompt → query in training, the query at inference; cross-entropy."""
    return progressive("PromptIntern")
