"""The arms that the company task compares, at equal optimizer steps over the same pairs."""

from ml_collections import ConfigDict

from pintern.arms import Arm
from pintern.config import default_config
from pintern.evaluation.run import InferencePrompt

QUERY_ONLY = InferencePrompt(keep_rate=0.0, shots=0)
SHOTS = 2

FULL = "base, full prompt"
CACHED = "base, full prompt, prefix cached"
OURS = "PromptIntern + distillation"


def base_config(seed: int) -> ConfigDict:
    """What all arms share."""
    config = default_config()
    config.name = "company"
    config.seed = seed
    config.task.kind = "company"
    config.prompt.max_shots = SHOTS
    config.train.steps = 300
    config.train.batch_rows = 16
    config.train.learning_rate = 6e-3
    config.train.warmup = 0.25  # gentle on the first stage, whose student becomes the teacher
    config.curriculum.final_share = 0.65
    config.eval.max_new_tokens = 48
    return config


def company_arms(seed: int) -> list[Arm]:
    """Seven rows: three of the base model, four trained."""
    full = InferencePrompt(keep_rate=1.0, shots=SHOTS, cached=False)
    base = base_config(seed)
    base.curriculum.schedule = "explicit"
    base.curriculum.keep_rates = (0.0,)
    base.curriculum.shots = (0,)

    direct = _named(base, "direct fine-tuning")
    abrupt = _named(base, "abrupt drop")
    abrupt.curriculum.keep_rates = (1.0,)
    abrupt.curriculum.shots = (SHOTS,)

    progressive = _named(base_config(seed), "PromptIntern")
    progressive.curriculum.schedule = "linear"
    progressive.curriculum.stages = 4

    distilled = _named(progressive, OURS)
    distilled.distill.weight = 1.0
    distilled.distill.teacher = "first_stage"
    distilled.distill.shots = SHOTS
    distilled.distill.unlabelled = 1200
    return [
        Arm("base, query only", base, QUERY_ONLY, trained=False),
        Arm(FULL, base, full, trained=False),
        Arm(CACHED, base, InferencePrompt(1.0, SHOTS), trained=False, scored_as=FULL),
        *(Arm(c.name, c, QUERY_ONLY) for c in (direct, abrupt, progressive, distilled)),
    ]


def _named(config: ConfigDict, name: str) -> ConfigDict:
    copy = config.copy_and_resolve_references()
    copy.name = name
    return copy
