"""What all arms share, and the prompts that their training sees."""

from ml_collections import ConfigDict

from pintern.config import default_config

SHOTS = 2


def base_config() -> ConfigDict:
    """The company task: optimizer, steps and sizes, at which every arm is trained alike."""
    config = default_config()
    config.task.kind = "company"
    config.prompt.max_shots = SHOTS
    config.train.steps = 300
    config.train.batch_rows = 16
    config.train.learning_rate = 6e-3
    config.train.warmup = 0.25  # gentle on the first stage, whose student may become the teacher
    config.curriculum.final_share = 0.65
    config.eval.max_new_tokens = 48
    return config


def constant(name: str, *, keep_rate: float = 0.0, shots: int = 0) -> ConfigDict:
    """An arm whose training prompt never changes: the query behind this much template and shots."""
    config = base_config()
    config.name = name
    config.curriculum.schedule = "explicit"
    config.curriculum.keep_rates = (keep_rate,)
    config.curriculum.shots = (shots,)
    return config


def untrained(name: str, *, keep_rate: float, shots: int, cached: bool = True) -> ConfigDict:
    """The base as it is behind this prompt."""
    config = constant(name)
    config.adapter.targets = ()
    config.eval.keep_rate = keep_rate
    config.eval.shots = shots
    config.eval.cached = cached
    return config


def soft_prompt_alone(config: ConfigDict) -> ConfigDict:
    """Trains twenty vectors and no LoRA, started from the vocabulary (2104.08691)."""
    config.adapter.targets = ()
    config.adapter.soft_prompt = 20
    # Vectors in front of a frozen model want larger steps than LoRA; as in the reduced IPT study.
    config.train.learning_rate = 3e-2
    return config


def progressive(name: str) -> ConfigDict:
    """From the full prompt to the query alone in four linear stages (PromptIntern, 2407.02211)."""
    config = base_config()
    config.name = name
    config.curriculum.schedule = "linear"
    config.curriculum.stages = 4
    return config
