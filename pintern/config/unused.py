"""Fields that only some choices look at: set beside another choice, they would do nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from pintern.config.fields import default_config
from pintern.errors import UserError


class Use(NamedTuple):
    """What looks at some fields of a group.

    Attributes:
      fields: their names, the group's before them.
      chooser: the field that makes the choice.
      looks: whether a choice looks at them.
      mend: a choice that does.
      where: another field and its value, where the choice is made at all; empty is everywhere.
    """

    fields: tuple[str, ...]
    chooser: str
    looks: Callable[[Any], bool]
    mend: str
    where: tuple[str, ...] = ()


def _of(group: str, names: str) -> tuple[str, ...]:
    return tuple(f"{group}.{name}" for name in names.split())


def _only(fields: tuple[str, ...], chooser: str, choice: str) -> Use:
    return Use(fields, chooser, lambda chosen: chosen == choice, choice)


_FILES = "template train test unlabelled metric query_format completion_format example_end"
_USES = (
    Use(("task.data",), "task.kind", lambda kind: kind != "company", "files"),
    _only(_of("task", f"{_FILES} query_field completion_field database"), "task.kind", "files"),
    Use(_of("task", "query_field completion_field"), "task.data", bool, "SOURCE"),
    _only(("task.database",), "task.metric", "sql"),
    _only(("eval.unconfined",), "task.kind", "mbpp"),
    Use(("model.revision",), "model.path", lambda path: path != "nano", "org/name"),
    Use(("prompt.compressor",), "prompt.ladder", lambda folder: not folder, ""),
    _only(("prompt.llmlingua_model",), "prompt.compressor", "llmlingua2"),
    _only(_of("prompt", "similarity similarity_quantile"), "prompt.retriever", "similarity_band"),
    _only(("prompt.fixed_shots",), "prompt.retriever", "fixed"),
    Use(
        ("prompt.sentence_model",),
        "prompt.retriever",
        lambda kind: kind in ("sentence_transformers", "similarity_band"),
        "sentence_transformers",
    ),
    Use(
        ("prompt.sentence_model",),
        "prompt.similarity",
        lambda kind: kind == "sentence_transformers",
        "sentence_transformers",
        where=("prompt.retriever", "similarity_band"),
    ),
    _only(_of("curriculum", "keep_rates shots"), "curriculum.schedule", "explicit"),
    _only(_of("curriculum", "epsilon patience probe"), "curriculum.schedule", "adaptive"),
    Use(("curriculum.stages",), "curriculum.schedule", lambda x: x != "explicit", "linear"),
    Use(("train.final_rate",), "train.decay", lambda decay: decay != "constant", "cosine"),
    Use(("adapter.dropout",), "adapter.targets", bool, "('all',)"),
    Use(("adapter.soft_prompt_init",), "adapter.soft_prompt", bool, "TOKENS"),
    _only(("adapter.soft_prompt_text",), "adapter.soft_prompt_init", "text"),
    _only(("adapter.soft_prompt_file",), "adapter.soft_prompt_init", "file"),
    Use(
        _of("distill", "teacher shots temperature top_k labelled by_confidence"),
        "distill.weight",
        bool,
        "1.0",
    ),
)


def check_used(config: ConfigDict) -> None:
    """Refuses a field away from its default that the config's choices pass over.

    Raises:
      UserError: names it, the choice that has no use for it, and one that has.
    """
    given, defaults = _flat(config), _flat(default_config())
    for use in _USES:
        chosen = given[use.chooser]
        looks = use.looks(chosen) or (use.where and given[use.where[0]] != use.where[1])
        for field in () if looks else use.fields:
            if given[field] != defaults[field]:
                raise UserError(
                    f"config.{field} is {given[field]!r}, but config.{use.chooser} is {chosen!r}, "
                    "which has no use for it.",
                    f"Set config.{use.chooser}={use.mend}, or leave config.{field} at its default, "
                    f"{defaults[field]!r}.",
                )


def _flat(config: ConfigDict) -> dict[str, Any]:
    """Fields by their whole names; lists are tuples."""
    return {
        f"{group}.{name}": tuple(value) if isinstance(value, list) else value
        for group, fields in config.items()
        if isinstance(fields, ConfigDict)
        for name, value in fields.items()
    }
