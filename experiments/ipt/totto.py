r"""IPT (2302.11521) on ToTTo: highlighted cells to a sentence, scored by BLEU on dev.

    python -m pintern.train --config=experiments/ipt/totto.py \
        --config.task.data=FOLDER --workdir=runs/ipt-totto

FOLDER holds the set's JSONL files, or gem/totto as tensorflow-datasets prepares it.
"""

from ml_collections import ConfigDict

from experiments.ipt.base import ipt_config


def get_config() -> ConfigDict:
    """BLOOM-1.1B, 25 virtual tokens, one retrieved demonstration."""
    return ipt_config("totto")
