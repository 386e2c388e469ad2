r"""PromptIntern (2407.02211) on NL2Bash: English to one Bash command, scored by BLEU.

    python -m pintern.train --config=experiments/promptintern/nl2bash.py \
        --config.task.data=FOLDER --workdir=runs/nl2bash

FOLDER holds NL2Bash's all.nl and all.cm. The bundled model was pre-trained on text-to-SQL alone:
with it the run shows that everything works, and no more. For a model that knows Bash, pass
--config.model.path=DIR.
"""

from ml_collections import ConfigDict

from pintern.config import default_config


def get_config() -> ConfigDict:
    """Four linear stages, two shots; a few minutes on two CPU cores."""
    config = default_config()
    config.name = "promptintern-nl2bash"
    config.task.kind = "nl2bash"
    config.task.max_train = 2000
    config.task.max_test = 200
    config.prompt.max_shots = 2
    config.curriculum.schedule = "linear"
    config.curriculum.stages = 4
    config.train.steps = 300
    config.train.batch_rows = 16
    config.eval.max_new_tokens = 96
    return config
