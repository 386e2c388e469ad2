r"""PromptIntern (2407.02211) on NL2Formula: a question about a table to its formula, exact match.

    python -m pintern.train --config=experiments/promptintern/nl2formula.py \
        --config.task.data=FOLDER --workdir=runs/nl2formula

FOLDER holds the set's train.json, valid.json and test.json. The model is the paper's smallest;
--config.model.path takes meta-llama/Llama-2-13b-hf or mistralai/Mixtral-8x7B-v0.1 as well.
"""

from ml_collections import ConfigDict

from pintern.config import default_config


def get_config() -> ConfigDict:
    """Llama-2-7B, LoRA of rank 32, four linear stages, five shots."""
    config = default_config()
    config.name = "promptintern-nl2formula"
    config.model.path = "meta-llama/Llama-2-7b-hf"
    config.model.remat = True
    config.task.kind = "nl2formula"
    config.prompt.max_shots = 5
    config.curriculum.schedule = "linear"
    config.curriculum.stages = 4
    config.adapter.rank = 32
    config.adapter.alpha = 64.0
    config.train.steps = 4000
    config.train.batch_rows = 32
    config.train.learning_rate = 5e-5  # not public; SKIntern's (2409.13183) of 8B
    config.eval.max_new_tokens = 128
    return config
