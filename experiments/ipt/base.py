"""What the configs of this folder share."""

from ml_collections import ConfigDict

from pintern.config import default_config


def ipt_config(kind: str) -> ConfigDict:
    """Instruction prompt tuning of a full-size model on one task: [soft prompt; demo; query].

    The paper's models are bigscience/bloom-1b1, facebook/opt-1.3b and gpt2-xl
    (openai-community/gpt2-xl); --config.model.path takes each, or `nano` to try the path offline.

    Args:
      kind: of the task.
    """
    config = default_config()
    config.name = f"ipt-{kind}"
    config.model.path = "bigscience/bloom-1b1"
    config.model.remat = True
    config.task.kind = kind
    config.prompt.retriever = "dense"  # over the model's own mean-pooled states
    config.prompt.max_shots = 1
    config.curriculum.schedule = "explicit"  # one level: the prompt stays as it is
    config.curriculum.keep_rates = (0.0,)
    config.curriculum.shots = (1,)
    config.adapter.targets = ()
    config.adapter.soft_prompt = 25  # the paper's shorter length; the longer is 100
    config.train.steps = 3000
    config.train.batch_rows = 16
    config.train.learning_rate = 1e-2  # soft prompts learn slowly: sweep it, with the seed
    config.eval.shots = 1
    config.eval.max_new_tokens = 128
    return config
