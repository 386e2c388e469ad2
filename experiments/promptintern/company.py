"""PromptIntern (2407.02211) on the embedded company task with the bundled model.

python -m pintern.train --config=experiments/promptintern/company.py --workdir=runs/company
"""

from ml_collections import ConfigDict

from pintern.config import default_config


def get_config() -> ConfigDict:
    """Four stages: full template and two retrieved examples, down to the query alone."""
    return default_config()
