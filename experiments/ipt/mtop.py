r"""IPT (2302.11521) on MTOP: an utterance to its logical form, scored by exact match.

    python -m pintern.train --config=experiments/ipt/mtop.py \
        --config.task.data=FOLDER --workdir=runs/ipt-mtop

FOLDER holds the set's JSONL files.
"""

from ml_collections import ConfigDict

from experiments.ipt.base import ipt_config


def get_config() -> ConfigDict:
    """BLOOM-1.1B, 25 virtual tokens, one retrieved demonstration."""
    return ipt_config("mtop")
