"""What values a field of a config takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from pintern.config.contradictions import check_contradictions
from pintern.config.fields import default_config
from pintern.config.unused import check_used
from pintern.errors import UserError
from pintern.schedules import SCHEDULES, UNITS, curriculum_of

CHOICES: dict[str, tuple[str, ...]] = {
    "model.dtype": ("auto", "float32", "bfloat16"),
    "model.quantize": ("none", "int8"),
    "model.attention": ("auto", "xla", "cudnn"),
    "task.kind": (
        "company",
        "dart",
        "files",
        "logic2text",
        "mbpp",
        "mtop",
        "nl2bash",
        "nl2formula",
        "spider",
        "totto",
        "wikisql",
    ),
    "task.metric": ("exact", "bleu", "chrf", "bash_tokens", "nlc2cmd", "sql"),
    "prompt.compressor": ("self_information", "llmlingua2", "truncation"),
    "prompt.retriever": (
        "bm25",
        "dense",
        "sentence_transformers",
        "similarity_band",
        "random",
        "fixed",
    ),
    "prompt.similarity": ("bm25", "dense", "sentence_transformers"),
    "curriculum.schedule": SCHEDULES,
    "curriculum.unit": UNITS,
    "distill.teacher": ("base", "first_stage"),
    "adapter.soft_prompt_init": ("uniform", "vocabulary", "text", "file"),
    "train.decay": ("cosine", "linear", "constant"),
}
_SHARE = ("between 0 and 1", lambda x: 0 <= x <= 1)
_POSITIVE = ("above 0", lambda x: x > 0)
_NOT_NEGATIVE = ("0 or more", lambda x: x >= 0)
_SIZE = ("above 0, or -1 for the rest", lambda x: x > 0 or x == -1)


def _list_of(what: str, kind: Any) -> tuple[str, Callable[[Any], bool]]:
    return f"a list of {what}", lambda values: all(isinstance(x, kind) for x in values)


_RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "seed": ("from 0 to 4294967295", lambda x: 0 <= x < 2**32),  # JAX takes 32 bits
    "model.unroll": _NOT_NEGATIVE,
    "mesh.data": _SIZE,
    "mesh.fsdp": _SIZE,
    "mesh.tensor": _SIZE,
    "task.max_train": _NOT_NEGATIVE,
    "task.max_test": _NOT_NEGATIVE,
    "task.query_format": ("a text with {query} in it", lambda text: "{query}" in text),
    "task.completion_format": ("a text with {completion} in it", lambda x: "{completion}" in x),
    "prompt.max_shots": _NOT_NEGATIVE,
    "prompt.similarity_quantile": _SHARE,
    "prompt.fixed_shots": _list_of("whole numbers", int),
    "curriculum.keep_rates": _list_of("numbers", int | float),
    "curriculum.shots": _list_of("whole numbers", int),
    "curriculum.epsilon": _NOT_NEGATIVE,
    "curriculum.probe": _POSITIVE,
    "curriculum.patience": _POSITIVE,
    "curriculum.smoothing": _NOT_NEGATIVE,
    "adapter.targets": _list_of("patterns", str),
    "adapter.rank": _POSITIVE,
    "adapter.alpha": _POSITIVE,
    "adapter.dropout": ("at least 0 and below 1", lambda x: 0 <= x < 1),
    "adapter.soft_prompt": _NOT_NEGATIVE,
    "train.steps": _POSITIVE,
    "train.batch_rows": _POSITIVE,
    "train.accumulate": _POSITIVE,
    "train.learning_rate": _POSITIVE,
    "train.warmup": _SHARE,
    "train.final_rate": _SHARE,
    "train.weight_decay": _NOT_NEGATIVE,
    "train.clip": _POSITIVE,
    "train.balance_weight": _NOT_NEGATIVE,
    "train.ce_weight": _NOT_NEGATIVE,
    "train.prompt_loss_weight": _NOT_NEGATIVE,
    "train.log_every": _POSITIVE,
    "distill.weight": _NOT_NEGATIVE,
    "distill.shots": _NOT_NEGATIVE,
    "distill.temperature": _POSITIVE,
    "distill.top_k": _NOT_NEGATIVE,
    "distill.unlabelled": _NOT_NEGATIVE,
    "checkpoint.every": _POSITIVE,
    "checkpoint.minutes": _NOT_NEGATIVE,
    "checkpoint.keep": _POSITIVE,
    "eval.keep_rate": _SHARE,
    "eval.shots": _NOT_NEGATIVE,
    "eval.max_new_tokens": _POSITIVE,
    "eval.batch_rows": _POSITIVE,
    "eval.temperature": _NOT_NEGATIVE,
    "eval.samples": _POSITIVE,
    "eval.draft_tokens": _NOT_NEGATIVE,
}


def validate(config: ConfigDict, *, recorded: bool = False) -> ConfigDict:
    """Checks every field's name, type and range, and what they make together; returns the config.

    Args:
      config: of a run that is to be made.
      recorded: it is, or follows from, that of one that was made: what is set in vain is let be.

    Raises:
      UserError: names the field, its value and what was expected.
    """
    _check_fields(config, default_config(), "")
    for field, choices in CHOICES.items():
        value = _get(config, field)
        if value not in choices:
            raise UserError(f"config.{field} is {value!r}; it must be one of {', '.join(choices)}.")
    for field, (wanted, holds) in _RANGES.items():
        value = _get(config, field)
        if not holds(value):
            raise UserError(f"config.{field} is {value!r}; it must be {wanted}.")
    check_contradictions(config)
    if not recorded:
        check_used(config)
    curriculum_of(config)
    return config


def _check_fields(config: ConfigDict, known: ConfigDict, path: str) -> None:
    for name in config:
        if name not in known:
            raise UserError(
                f"config.{path}{name} is not a field.",
                f"There are: {', '.join(f'{path}{field}' for field in known)}.",
            )
    for name, default in known.items():
        if name not in config:
            raise UserError(f"config.{path}{name} is missing; start from default_config().")
        value = config[name]
        if isinstance(default, ConfigDict):
            if not isinstance(value, ConfigDict):
                raise UserError(f"config.{path}{name} is {value!r}; it is a group of fields.")
            _check_fields(value, default, f"{path}{name}.")
        elif not _same_type(value, default):
            raise UserError(
                f"config.{path}{name} is {value!r}; expected {type(default).__name__}, "
                f"e.g. {default!r}."
            )
        elif isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"config.{path}{name} is {value}; it must be a finite number.")


def _same_type(value: object, default: object) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    if isinstance(default, tuple):
        return isinstance(value, tuple | list)
    return isinstance(value, type(default))


def _get(config: ConfigDict, path: str) -> Any:
    for name in path.split("."):
        config = config[name]
    return config
