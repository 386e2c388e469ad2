"""Mistakes in a config or on the command line are told in one line that names them."""

import pytest
import tiny

from pintern.config import (
    default_config,
    differences,
    fingerprint,
    from_json,
    to_json,
    trains,
    validate,
)
from pintern.errors import UserError


def changed(path: str, value: object):
    config = default_config().unlock()
    group = config
    *groups, field = path.split(".")
    for name in groups:
        group = group[name]
    with group.ignore_type():
        group[field] = value
    return config


def test_the_default_config_is_valid():
    assert validate(default_config()) == default_config()


def test_a_chat_template_takes_the_place_of_the_format():
    config = changed("task.chat", True)
    assert validate(config).task.chat
    config.task.query_format = "Q: {query}"
    with pytest.raises(
        UserError, match=r"query_format is 'Q: {query}', but with config\.task\.chat"
    ):
        validate(config)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"similarity_quantile": 0.5}, r"similarity_quantile is 0\.5.*retriever=similarity_band"),
        ({"similarity": "bm25", "retriever": "dense"}, r"similarity is 'bm25'.*'dense'"),
        ({"fixed_shots": (3, 1)}, r"fixed_shots is \(3, 1\).*retriever=fixed"),
        ({"compressor": "llmlingua2", "ladder": "texts"}, r"'llmlingua2'.*ladder is 'texts'"),
        ({"compressor": "truncation", "ladder": "texts"}, r"Set config\.prompt\.ladder=, or leave"),
        ({"compressor": "llmlingua2", "llmlingua_model": ""}, r"llmlingua_model is empty"),
        ({"retriever": "sentence_transformers", "sentence_model": ""}, "sentence_model is empty"),
        (
            {
                "retriever": "similarity_band",
                "similarity": "sentence_transformers",
                "sentence_model": "",
            },
            r"sentence_model is empty, but config\.prompt\.similarity",
        ),
        (
            {"retriever": "similarity_band", "sentence_model": "folder"},
            r"sentence_model is 'folder', but config\.prompt\.similarity is 'dense'",
        ),
        ({"retriever": "similarity_band", "similarity_quantile": 1.5}, "between 0 and 1"),
        ({"retriever": "fixed", "fixed_shots": (1.5,)}, "whole numbers"),
    ],
)
def test_prompt_fields_that_disagree_are_named(fields, said):
    config = default_config()
    with config.prompt.ignore_type():
        config.prompt.update(fields)
    with pytest.raises(UserError, match=said):
        validate(config)


def test_prompt_fields_that_agree_are_taken():
    for fields in (
        {"retriever": "similarity_band", "similarity": "bm25", "similarity_quantile": 0.25},
        {"retriever": "sentence_transformers", "sentence_model": "folder"},
        {
            "retriever": "similarity_band",
            "similarity": "sentence_transformers",
            "sentence_model": "folder",
        },
        {"retriever": "fixed", "fixed_shots": (3, 1)},
        {"retriever": "fixed", "fixed_shots": []},
        {"fixed_shots": []},
        {"compressor": "llmlingua2", "retriever": "sentence_transformers"},
    ):
        config = default_config()
        with config.prompt.ignore_type():
            config.prompt.update(fields)
        assert validate(config) is config


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("train.step", 5, r"config\.train\.step is not a field.*train\.steps"),
        ("trian", {}, r"config\.trian is not a field"),
        ("train.steps", "abc", r"config\.train\.steps is 'abc'; expected int"),
        ("train.steps", 5.5, r"expected int"),
        ("train.steps", True, r"expected int"),
        ("model.remat", 1, r"expected bool"),
        ("train", 3, r"config\.train is 3; it is a group"),
        ("adapter.targets", "all", r"expected tuple"),
        ("adapter.targets", (3,), r"config\.adapter\.targets"),
        ("curriculum.keep_rates", ("1.0",), r"config\.curriculum\.keep_rates"),
        ("curriculum.shots", (1.5,), r"config\.curriculum\.shots"),
        ("train.steps", 0, r"config\.train\.steps is 0; it must be above 0"),
        ("seed", 2**32, r"config\.seed is 4294967296; it must be from 0 to 4294967295"),
        ("train.warmup", 1.5, r"between 0 and 1"),
        ("train.learning_rate", float("nan"), r"config\.train\.learning_rate is nan"),
        ("train.clip", float("inf"), r"config\.train\.clip is inf; it must be a finite number"),
        ("adapter.alpha", float("nan"), r"config\.adapter\.alpha is nan"),
        ("adapter.alpha", 0.0, r"config\.adapter\.alpha is 0.0; it must be above 0"),
        ("adapter.dropout", 1.0, r"config\.adapter\.dropout is 1.0"),
        ("task.max_train", -1, r"config\.task\.max_train is -1"),
        ("train.decay", "sudden", r"must be one of cosine, linear, constant"),
        ("train.ce_weight", 0.0, r"ce_weight is 0 .*config\.distill\.weight is 0"),
        ("curriculum.epsilon", -5.0, r"config\.curriculum\.epsilon is -5"),
        ("curriculum.schedule", "sudden", r"config\.curriculum\.schedule is 'sudden'.*linear"),
        ("curriculum.stages", 0, r"config\.curriculum\.stages is 0"),
        ("train.steps", 3, r"config\.train\.steps is 3, too few for the 4 levels of .*stages"),
        ("task.query_format", "Foo", r"config\.task\.query_format is 'Foo'.*{query}"),
        ("curriculum.smoothing", -1.0, r"config\.curriculum\.smoothing is -1"),
        ("distill.top_k", -1, r"config\.distill\.top_k is -1"),
        ("train.accumulate", 3, r"batch_rows=16 is not a multiple of .*accumulate=3"),
        ("distill.unlabelled", 10, r"config\.distill\.weight"),
        ("eval.samples", 5, r"samples is 5 at config\.eval\.temperature=0: all would be the same"),
        ("eval.samples", 0, r"config\.eval\.samples is 0"),
        (
            "model.quantize",
            "int4",
            r"config\.model\.quantize is 'int4'; it must be one of none, int8",
        ),
    ],
)
def test_mistakes_are_named(path, value, said):
    with pytest.raises(UserError, match=said):
        validate(changed(path, value))


@pytest.mark.parametrize(
    ("path", "value", "mend"),
    [
        ("task.template", "prompt.txt", r"config\.task\.kind=files"),
        ("task.data", "rows.csv", r"config\.task\.kind=files"),
        ("task.metric", "bleu", r"config\.task\.kind=files"),
        ("model.revision", "v1", r"config\.model\.path=org/name"),
        ("prompt.sentence_model", "any", r"config\.prompt\.retriever=sentence_transformers"),
        ("curriculum.keep_rates", (1.0, 0.0), r"config\.curriculum\.schedule=explicit"),
        ("curriculum.patience", 5, r"config\.curriculum\.schedule=adaptive"),
        ("adapter.soft_prompt_init", "text", r"config\.adapter\.soft_prompt=TOKENS"),
        ("adapter.soft_prompt_text", "hello", r"config\.adapter\.soft_prompt_init=text"),
        ("distill.teacher", "first_stage", r"config\.distill\.weight=1\.0"),
        ("eval.unconfined", True, r"config\.task\.kind=mbpp"),
    ],
)
def test_a_field_that_nothing_would_look_at_is_refused(path, value, mend):
    said = rf"config\.{path} is .*which has no use for it\. Set {mend}, or leave config\.{path} at"
    with pytest.raises(UserError, match=said):
        validate(changed(path, value))


def test_a_rate_to_end_with_needs_a_decay():
    config = changed("train.decay", "constant")
    config.train.final_rate = 0.1
    with pytest.raises(UserError, match=r"Set config\.train\.decay=cosine"):
        validate(config)


def test_dropout_is_lora_s():
    """A soft prompt has none: alone, it would be trained as without."""
    config = changed("adapter.dropout", 0.1)
    config.adapter.update(targets=(), soft_prompt=8)
    with pytest.raises(UserError, match=r"dropout is 0\.1, .*targets is \(\).*targets=\('all',\)"):
        validate(config)


def test_listed_levels_need_no_count():
    config = changed("curriculum.stages", 9)
    config.curriculum.update(schedule="explicit", keep_rates=(1.0, 0.0))
    with pytest.raises(UserError, match=r"stages is 9, .*schedule is 'explicit'"):
        validate(config)


def test_a_database_is_for_the_metric_sql():
    config = tiny.config(task__database="some.sqlite")
    with pytest.raises(UserError, match=r"database is .*metric is 'exact'.*metric=sql"):
        validate(config)
    config.task.metric = "sql"
    validate(config)


@pytest.mark.parametrize(
    ("path", "value"),
    [("train.learning_rate", 1), ("adapter.targets", ["mlp.*"]), ("curriculum.keep_rates", (1, 0))],
)
def test_whole_numbers_and_lists_may_stand_for_floats_and_tuples(path, value):
    config = changed(path, value)
    if path == "curriculum.keep_rates":
        config.curriculum.schedule = "explicit"
    validate(config)


def test_a_missing_field_is_named():
    config = default_config().unlock()
    del config.train["steps"]
    with pytest.raises(UserError, match=r"config\.train\.steps is missing"):
        validate(config)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labelled": False}, r"the teacher would be asked nothing"),
        ({"teacher": "first_stage"}, r"distill\.teacher is 'first_stage'"),
    ],
)
def test_distillation_alone_needs_something_to_learn(changes, said):
    config = changed("train.ce_weight", 0.0)
    config.distill.weight = 1.0
    validate(config)
    config.distill.update(changes)
    with pytest.raises(UserError, match=said):
        validate(config)


def test_the_prompts_loss_is_a_part_of_the_cross_entropy():
    config = changed("train.ce_weight", 0.0)
    config.distill.weight = 1.0
    config.train.prompt_loss_weight = 0.1
    with pytest.raises(UserError, match="prompt_loss_weight is a part of it"):
        validate(config)


def test_without_lora_and_soft_prompt_nothing_is_trained():
    assert trains(default_config())
    assert not trains(validate(changed("adapter.targets", ())))


def test_a_soft_prompt_alone_can_be_trained():
    config = changed("adapter.targets", ())
    config.adapter.soft_prompt = 4
    assert trains(validate(config))


def test_json_round_trip():
    config = changed("curriculum.keep_rates", (1.0, 0.5, 0.0))
    config.curriculum.schedule = "explicit"
    back = from_json(to_json(config))
    assert back == config
    assert to_json(back) == to_json(config)
    assert differences(back, config) == []


def test_differences_name_field_old_and_new_value():
    other = changed("train.steps", 800)
    other.adapter.targets = ("mlp.*",)
    assert differences(default_config(), other) == [
        "adapter.targets: ['all'] → ['mlp.*']",
        "train.steps: 400 → 800",
    ]


def test_the_fingerprint_changes_with_any_field():
    assert fingerprint(default_config()) == fingerprint(default_config())
    assert fingerprint(changed("seed", 1)) != fingerprint(default_config())


def test_command_lines_with_a_mistake_end_in_one_line(tmp_path):
    file = f"--config={tiny.config_file(tmp_path, tiny.config())}"
    workdir = f"--workdir={tmp_path / 'run'}"
    mistakes = {
        ("--config.train.step=5", file, workdir): "step",
        ("--config.train.steps=abc", file, workdir): "steps",
        (f"--config={tmp_path}/none.py", workdir): "none.py",
        (file,): "--workdir is missing: Folder of the run",
        ("--config=", workdir): "--config=: there is no such file",
        (file, workdir, "--config.train.warmup=2"): "config.train.warmup is 2",
    }
    started = {arguments: tiny.start("-m", "pintern.train", *arguments) for arguments in mistakes}
    for arguments, process in started.items():
        out, err = process.communicate(timeout=120)
        assert process.returncode == 2, (arguments, out, err)
        assert err.startswith("error:"), (arguments, err)
        assert len(err.splitlines()) == 1, (arguments, err)
        assert mistakes[arguments] in err, (arguments, err)
    assert not (tmp_path / "run").exists()


def test_help_shows_the_docs_and_loads_no_jax():
    code = (
        "import runpy, sys\n"
        "sys.argv = ['train', '--help']\n"
        "try:\n"
        "    runpy.run_module('pintern.train', run_name='__main__', alter_sys=True)\n"
        "except SystemExit:\n"
        "    pass\n"
        "print('loaded:', 'jax' in sys.modules)\n"
    )
    _, out, err = tiny.run("-c", code)
    assert "loaded: False" in out, err
    assert "Trains an adapter that does without the prompt." in out
    assert "--workdir" in out


def test_a_commands_programs_are_kept_however_small(tmp_path, monkeypatch):
    # The suite's own cache aside.
    for name in ("COMPILATION_CACHE_DIR", "PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.delenv(f"JAX_{name}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code = (
        "from pintern import cli\n"
        "def main(_):\n"
        "    import jax\n"
        "    jax.jit(lambda x: x + 1)(1.0)\n"
        "cli.run(main)\n"
    )
    tiny.run("-c", code)
    assert any((tmp_path / "pintern" / "jax").glob("*lambda*"))


def test_what_a_recorded_config_sets_in_vain_is_let_be():
    config = default_config()
    config.curriculum.epsilon = 3.0
    with pytest.raises(UserError, match="which has no use for it"):
        validate(config)
    assert from_json(to_json(config)) == config
