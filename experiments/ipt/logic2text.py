r"""IPT (2302.11521) on Logic2Text: a logical form to a sentence, scored by BLEC.

    python -m pintern.train --config=experiments/ipt/logic2text.py \
        --config.task.data=FOLDER --workdir=runs/ipt-logic2text

FOLDER holds the set's train.json, valid.json and test.json.
"""

from ml_collections import ConfigDict

from experiments.ipt.base import ipt_config


def get_config() -> ConfigDict:
    """BLOOM-1.1B, 25 virtual tokens, one retrieved demonstration."""
    return ipt_config("logic2text")
