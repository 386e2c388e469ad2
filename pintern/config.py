"""The configuration of a run: every field, its default, and what values it takes.

An experiment is a file with a `get_config()` that starts from `default_config()` and changes what
it is about; `--config.<field>=<value>` overrides single fields on the command line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from pintern.config_checks import check_losses
from pintern.errors import UserError


def default_config() -> ConfigDict:
    """PromptIntern on the company task with the bundled model."""
    config = ConfigDict()
    config.name = "promptintern"  # shown in tables
    config.seed = 0  # of every random choice

    config.model = ConfigDict()
    config.model.path = "nano"  # a directory, org/name on the hub, or `nano`, the bundled model
    config.model.revision = ""  # of org/name: branch, tag or commit; empty is the newest
    config.model.random_init = False  # weights drawn from the seed, shapes from config.json
    config.model.dtype = "auto"  # auto (float32 on CPU, else bfloat16), float32 or bfloat16
    config.model.quantize = "none"  # int8 holds the frozen linear maps in a byte per weight
    config.model.remat = False  # recompute activations in the backward pass: less memory

    config.task = ConfigDict()
    config.task.kind = "company"  # company, files, or a public set, see `pintern.tasks`
    config.task.data = ""  # public sets and files: file, folder, or org/name[:config] on the hub
    config.task.query_field = "query"  # files: of the rows in `data`
    config.task.completion_field = "completion"  # likewise
    config.task.template = ""  # files: text file with the recurring prompt
    config.task.train = ""  # files: JSONL of {"query", "completion"}
    config.task.test = ""  # files: the same; empty splits off a fifth of `train`
    config.task.unlabelled = ""  # files: JSONL of {"query"}, for distillation; may be empty
    config.task.metric = "exact"  # files: exact, bleu, chrf, bash_tokens, nlc2cmd or sql
    config.task.database = ""  # files: SQLite file, for the metric sql
    config.task.query_format = "Question: {query}\nAnswer:"  # files
    config.task.completion_format = " {completion}"  # files
    config.task.example_end = "\n"  # files: between an example and what follows
    config.task.chat = False  # in the checkpoint's chat template: system, turns, user
    config.task.max_train = 0  # use at most so many labelled pairs; 0 is all
    config.task.max_test = 0  # likewise

    config.prompt = ConfigDict()
    config.prompt.compressor = "self_information"  # self_information, llmlingua2 or truncation
    # llmlingua2: a token classifier, a folder or a name on the hub
    config.prompt.llmlingua_model = "microsoft/llmlingua-2-xlm-roberta-large-meetingbank"
    config.prompt.ladder = ""  # folder with a hand-written template-<rate>.txt for each level
    # bm25, dense (states of the base), sentence_transformers, similarity_band, random or fixed
    config.prompt.retriever = "bm25"
    # sentence_transformers: a folder or a name on the hub
    config.prompt.sentence_model = "sentence-transformers/all-MiniLM-L6-v2"
    config.prompt.similarity = "dense"  # similarity_band: bm25, dense or sentence_transformers
    config.prompt.similarity_quantile = 1.0  # similarity_band: 1 the most similar, 0 the least
    config.prompt.fixed_shots = ()  # fixed: indices of labelled pairs; () is the first ones
    config.prompt.max_shots = 2  # K, retrieved examples at the fullest level

    config.curriculum = ConfigDict()
    config.curriculum.schedule = "linear"  # see `python -m pintern.curriculum --help`
    config.curriculum.unit = "stages"  # stages or steps
    config.curriculum.stages = 4  # T, levels from the full prompt to the query alone
    config.curriculum.keep_rates = ()  # explicit: τ of each level
    config.curriculum.shots = ()  # explicit: examples of each level
    config.curriculum.final_share = 0.0  # share of steps on the query alone; 0 is an equal share
    config.curriculum.epsilon = 2.0  # adaptive: points the next level may lag behind
    config.curriculum.patience = 50  # adaptive: steps between two looks
    config.curriculum.smoothing = 0.0  # λ of random steps ahead (2405.14838 has 4); 0 is none
    config.curriculum.probe = 48  # adaptive: labelled pairs scored at each look

    config.adapter = ConfigDict()
    # With neither LoRA nor a soft prompt nothing is trained: the base as it is.
    config.adapter.targets = ("all",)  # patterns over linear modules; () is no LoRA
    config.adapter.rank = 16
    config.adapter.alpha = 32.0
    config.adapter.dropout = 0.0
    config.adapter.rank_stabilised = False  # α/√r in place of α/r
    config.adapter.init_from = ""  # PEFT LoRA or PROMPT_TUNING folder, or an export, to start from
    config.adapter.soft_prompt = 0  # learned vectors at the head of the prefix
    config.adapter.soft_prompt_init = "vocabulary"  # uniform, vocabulary, text or file
    config.adapter.soft_prompt_text = ""  # for text
    config.adapter.soft_prompt_file = ""  # for file

    config.train = ConfigDict()
    config.train.steps = 400  # optimizer steps
    config.train.batch_rows = 16  # rows per optimizer step, all behind one shared prefix
    config.train.accumulate = 1  # micro-batches per optimizer step
    config.train.learning_rate = 2e-3
    config.train.warmup = 0.1  # share of steps
    config.train.decay = "cosine"  # cosine, linear or constant
    config.train.final_rate = 0.0  # share of the peak rate at the end
    config.train.weight_decay = 0.0
    config.train.clip = 1.0  # global gradient norm
    config.train.ce_weight = 1.0  # of the cross-entropy; 0 is distillation alone
    config.train.prompt_loss_weight = (
        0.0  # of a prompt token in the cross-entropy; 1 is as a target
    )
    config.train.reset_optimizer = False  # moments start anew at each stage; the rate goes on
    config.train.balance_weight = 0.02  # of the load-balancing loss; mixtures of experts only
    config.train.log_every = 10  # steps

    config.distill = ConfigDict()
    config.distill.weight = 0.0  # λ of KL to a teacher that reads the full prompt
    config.distill.teacher = (
        "base"  # base (adapter off) or first_stage (as its last step leaves it)
    )
    config.distill.shots = 2  # examples in the teacher's prompt
    config.distill.temperature = 1.0
    config.distill.top_k = 0  # KL over the teacher's k likeliest tokens and the rest; 0 is all
    config.distill.labelled = True  # learn from the teacher on labelled completions too
    config.distill.by_confidence = True  # a row's KL counts by the teacher's belief in it
    config.distill.unlabelled = 0  # queries of the log the teacher answers, mixed into the rows

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 100  # steps
    config.checkpoint.keep = 2
    config.checkpoint.stages = False  # keep the state at each stage's end, in stages/

    config.eval = ConfigDict()
    config.eval.keep_rate = 0.0  # τ of the template at inference
    config.eval.shots = 0  # retrieved examples at inference
    config.eval.cached = True  # the template is read once; False reads it again at every request
    config.eval.max_new_tokens = 64
    config.eval.batch_rows = 64
    config.eval.temperature = 0.0  # 0 is greedy
    config.eval.samples = 1  # answers per example, drawn at the temperature: pass@k
    config.eval.unconfined = False  # mbpp: run programs where the kernel can't confine them
    return config


_CHOICES: dict[str, tuple[str, ...]] = {
    "model.dtype": ("auto", "float32", "bfloat16"),
    "model.quantize": ("none", "int8"),
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
    "distill.teacher": ("base", "first_stage"),
    "adapter.soft_prompt_init": ("uniform", "vocabulary", "text", "file"),
    "train.decay": ("cosine", "linear", "constant"),
}
_SHARE = ("between 0 and 1", lambda x: 0 <= x <= 1)
_POSITIVE = ("above 0", lambda x: x > 0)
_NOT_NEGATIVE = ("0 or more", lambda x: x >= 0)


def _list_of(what: str, kind: Any) -> tuple[str, Callable[[Any], bool]]:
    return f"a list of {what}", lambda values: all(isinstance(x, kind) for x in values)


_RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "seed": _NOT_NEGATIVE,
    "task.max_train": _NOT_NEGATIVE,
    "task.max_test": _NOT_NEGATIVE,
    "prompt.max_shots": _NOT_NEGATIVE,
    "prompt.similarity_quantile": _SHARE,
    "prompt.fixed_shots": _list_of("whole numbers", int),
    "curriculum.keep_rates": _list_of("numbers", int | float),
    "curriculum.shots": _list_of("whole numbers", int),
    "curriculum.probe": _POSITIVE,
    "curriculum.patience": _POSITIVE,
    "curriculum.smoothing": _NOT_NEGATIVE,
    "adapter.targets": _list_of("patterns", str),
    "adapter.rank": _POSITIVE,
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
    "checkpoint.keep": _POSITIVE,
    "eval.keep_rate": _SHARE,
    "eval.shots": _NOT_NEGATIVE,
    "eval.max_new_tokens": _POSITIVE,
    "eval.batch_rows": _POSITIVE,
    "eval.temperature": _NOT_NEGATIVE,
    "eval.samples": _POSITIVE,
}


def validate(config: ConfigDict) -> ConfigDict:
    """Checks every field's name, type and range; returns the config.

    Raises:
      UserError: names the field, its value and what was expected.
    """
    _check_fields(config, default_config(), "")
    for field, choices in _CHOICES.items():
        value = _get(config, field)
        if value not in choices:
            raise UserError(f"config.{field} is {value!r}; it must be one of {', '.join(choices)}.")
    for field, (wanted, holds) in _RANGES.items():
        value = _get(config, field)
        if not holds(value):
            raise UserError(f"config.{field} is {value}; it must be {wanted}.")
    if config.adapter.init_from and config.adapter.soft_prompt_init == "file":
        raise UserError(
            "config.adapter.init_from and config.adapter.soft_prompt_file would both set the soft "
            "prompt.",
            "Leave config.adapter.soft_prompt_init at another value than 'file'.",
        )
    _check_prompt(config.prompt)
    if config.task.chat:
        for field in ("query_format", "completion_format", "example_end"):
            if config.task[field] != default_config().task[field]:
                raise UserError(
                    f"config.task.{field} is {config.task[field]!r}, but with config.task.chat the "
                    "checkpoint's chat template takes its place.",
                    "Leave it out, or set config.task.chat=False.",
                )
    check_losses(config)
    if config.eval.samples > 1 and not config.eval.temperature:
        raise UserError(
            f"config.eval.samples is {config.eval.samples} at config.eval.temperature=0: all would "
            "be the same.",
            "Set config.eval.temperature (e.g. 0.8), or config.eval.samples=1.",
        )
    if config.train.batch_rows % config.train.accumulate:
        raise UserError(
            f"config.train.batch_rows={config.train.batch_rows} is not a multiple of "
            f"config.train.accumulate={config.train.accumulate}."
        )
    return config


def _check_prompt(prompt: ConfigDict) -> None:
    """Refuses choices that the chosen compressor or retriever would pass over in silence."""
    defaults = default_config().prompt
    for field, kind in (
        ("similarity", "similarity_band"),
        ("similarity_quantile", "similarity_band"),
        ("fixed_shots", "fixed"),
    ):
        value, default = prompt[field], defaults[field]
        same = list(value) == list(default) if isinstance(default, tuple) else value == default
        if not same and prompt.retriever != kind:
            raise UserError(
                f"config.prompt.{field} is {prompt[field]!r}, but config.prompt.retriever is "
                f"{prompt.retriever!r}, which has no use for it.",
                f"Set config.prompt.retriever={kind}, or leave {field} out.",
            )
    if prompt.compressor == "llmlingua2" and prompt.ladder:
        raise UserError(
            f"config.prompt.ladder is {prompt.ladder!r} and config.prompt.compressor 'llmlingua2': "
            "both would write the template's texts.",
            "Leave one of them out.",
        )
    for field, user in (
        ("llmlingua_model", ("compressor", "llmlingua2")),
        ("sentence_model", ("retriever", "sentence_transformers")),
    ):
        if not prompt[field] and prompt[user[0]] == user[1]:
            raise UserError(
                f"config.prompt.{field} is empty, but config.prompt.{user[0]} is {user[1]!r}.",
                "Give a folder or a name on the hub.",
            )


def trains(config: ConfigDict) -> bool:
    """Whether the config trains anything; without LoRA and soft prompt it is the base as it is."""
    return bool(config.adapter.targets or config.adapter.soft_prompt)


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


def to_json(config: ConfigDict) -> str:
    """The config as it is written to a run's `config.json`."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> ConfigDict:
    """Reads back what `to_json` wrote."""
    return validate(ConfigDict(json.loads(text, object_hook=_tuples)))


def _tuples(mapping: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in mapping.items()}


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """Fields that differ, as `train.steps: 400 → 800`."""
    a, b = _flat(old.to_dict()), _flat(new.to_dict())
    return [f"{k}: {a.get(k)!r} → {b.get(k)!r}" for k in sorted({*a, *b}) if a.get(k) != b.get(k)]


def _flat(tree: dict[str, Any], path: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{path}{name}."))
        else:
            flat[path + name] = list(value) if isinstance(value, tuple) else value
    return flat


def fingerprint(config: ConfigDict) -> str:
    """Twelve hex digits that change when any field does."""
    return hashlib.sha256(to_json(config).encode()).hexdigest()[:12]
