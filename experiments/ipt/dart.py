r"""IPT (2302.11521) on DART: triples to text, scored by BLEU and chrF.

    python -m pintern.train --config=experiments/ipt/dart.py \
        --config.task.data=FOLDER --workdir=runs/ipt-dart

FOLDER holds the set's JSON or XML files, or gem/dart as tensorflow-datasets prepares it.
"""

from ml_collections import ConfigDict

from experiments.ipt.base import ipt_config


def get_config() -> ConfigDict:
    """BLOOM-1.1B, 25 virtual tokens, one retrieved demonstration."""
    return ipt_config("dart")
