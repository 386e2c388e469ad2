r"""IPT (2302.11521) on Spider: a question and its database's schema to SQL, by exact set match.

    python -m pintern.train --config=experiments/ipt/spider.py \
        --config.task.data=FOLDER --workdir=runs/ipt-spider

FOLDER holds train_spider.json, dev.json, tables.json and database/. Execution accuracy is recorded
beside exact set match.
"""

from ml_collections import ConfigDict

from experiments.ipt.base import ipt_config


def get_config() -> ConfigDict:
    """BLOOM-1.1B, 25 virtual tokens, one retrieved demonstration with its own schema."""
    return ipt_config("spider")
