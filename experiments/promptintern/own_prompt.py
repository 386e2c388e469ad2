r"""PromptIntern (2407.02211) on a prompt of your own: a template file and JSONL files.

    python -m pintern.train --config=experiments/promptintern/own_prompt.py \
        --workdir=runs/own_prompt

The files of experiments/own_prompt stand in for yours; experiments/own_prompt.md explains them.
"""

from ml_collections import ConfigDict

from pintern.config import default_config

FOLDER = "experiments/own_prompt"  # as seen from the repository's root


def get_config() -> ConfigDict:
    """Four linear stages, two shots; sized for some forty labelled pairs."""
    config = default_config()
    config.name = "promptintern-own-prompt"
    config.task.kind = "files"
    config.task.template = f"{FOLDER}/template.txt"
    config.task.train = f"{FOLDER}/train.jsonl"
    config.task.test = f"{FOLDER}/test.jsonl"
    config.task.metric = "exact"
    config.task.query_format = "Ticket: {query}\nJSON:"
    config.prompt.max_shots = 2
    config.curriculum.schedule = "linear"
    config.curriculum.stages = 4
    config.train.steps = 80
    config.train.batch_rows = 8
    return config
