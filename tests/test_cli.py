"""How commands start: their flags, config files and single fields, and what is told of mistakes."""

import pytest
import tiny

from pintern.config import default_config
from pintern.config.given import change_fields, read_config_file
from pintern.errors import UserError

SHOWS_ITS_CONFIG = """
from pintern import cli
def main(_):
    config = cli.config_from_flags()
    print(config.train.steps, config.train.pack, config.adapter.targets, cli.config_flags())
cli.define_config()
cli.run(main)
"""


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("train.steps=8", 8),
        ("train.learning_rate=1e-3", 1e-3),
        ("train.pack=False", False),
        ("task.query_format=a={query}", "a={query}"),
        ("task.test=", ""),
        ("seed=3", 3),
        ("curriculum.keep_rates=1,0.5,0", (1, 0.5, 0)),
        ("adapter.targets=all", ("all",)),
        ("adapter.targets=mlp.*, attn.*", ("mlp.*", "attn.*")),
        ("adapter.targets=('a', 'b')", ("a", "b")),
        ("adapter.targets=()", ()),
        ("adapter.targets=", ()),
    ],
)
def test_a_field_takes_a_text_in_its_own_type(change, value):
    config = default_config()
    change_fields(config, [change])
    group, _, field = change.partition("=")[0].rpartition(".")
    found = (config[group] if group else config)[field]
    assert found == value and type(found) is type(value)


def test_a_list_may_be_given_item_by_item_and_else_the_last_counts():
    config = default_config()
    change_fields(config, ["adapter.targets=a", "seed=1", "adapter.targets=b", "seed=2"])
    assert (config.adapter.targets, config.seed) == (("a", "b"), 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("train.steps=8.5", r"--config\.train\.steps=8\.5: expected a whole number, e\.g\. 400"),
        ("train.learning_rate=x", r"learning_rate=x: expected a number, e\.g\. 0\.002"),
        ("train.pack=maybe", r"--config\.train\.pack=maybe: expected true or false"),
        ("trian.steps=8", r"config\.trian\.steps is not a field\. Did you mean config\.train\.ste"),
        ("train.step=8", r"Did you mean config\.train\.steps\? .*pintern\.config` lists all"),
        ("zzz=8", r"config\.zzz is not a field\. `python -m pintern\.config`"),
        ("train=8", r"config\.train is a group of fields\. Change one .*--config\.train\.FIELD=V"),
    ],
)
def test_a_wrong_field_or_value_is_told(change, said):
    with pytest.raises(UserError, match=said):
        change_fields(default_config(), [change])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def get_config():\n    1\n", r"file\.py: get_config\(\) returns None\. It should ret"),
        ("def get_config():\n    return {}\n", r"get_config\(\) returns a dict"),
        ("x = 1\n", r"file\.py has no get_config\(\)"),
        ("\nimport nosuchmodule\n", r"file\.py, line 2: ModuleNotFoundError: .*nosuch.*root"),
        ("def get_config():\n    return steps\n", r"file\.py, line 2: NameError: name 'steps'"),
        ("def get_config():\n    raise KeyError('a\\nb')\n", r"line 2: KeyError: 'a\\nb'"),
        ("def get_config(:\n", r"file\.py, line 1: invalid syntax"),
    ],
)
def test_a_broken_config_file_is_told_by_its_line(tmp_path, text, said):
    path = tmp_path / "file.py"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        read_config_file(str(path))


def test_an_argument_that_nobody_takes_is_told(tmp_path):
    file = str(tiny.config_file(tmp_path, tiny.config()))
    with pytest.raises(UserError, match=r"experiment\.py:large: TypeError: get_config\(\) takes 0"):
        read_config_file(f"{file}:large")
    assert read_config_file(file) == tiny.config()
    with pytest.raises(UserError, match=r"--config=: there is no such file"):
        read_config_file("")


def test_fields_are_changed_with_and_without_a_file_wherever_they_stand(tmp_path):
    changes = ["--config.train.steps", "8", "--noconfig.train.pack", "--config.adapter.targets=qkv"]
    _, out, err = tiny.run("-c", SHOWS_ITS_CONFIG, *changes)
    names = ["--config.train.steps", "--config.train.pack", "--config.adapter.targets"]
    assert out == f"8 False ('qkv',) {names}\n", err
    file = f"--config={tiny.config_file(tmp_path, tiny.config())}"
    _, out, err = tiny.run("-c", SHOWS_ITS_CONFIG, "--config.train.steps=9", file)
    assert out == "9 True ('all',) ['--config', '--config.train.steps']\n", err


@pytest.mark.parametrize("command", ["pintern.train", "pintern.curriculum", "pintern.evaluate"])
def test_help_names_the_config_and_where_its_fields_are(command):
    code, out, _ = tiny.run("-m", command, "--help")
    assert code == 0
    assert "--config: " in out and "--config.train.steps=400" in out
    assert "pintern.config" in out and "fields.py" in out


def test_all_fields_are_printed_with_what_they_mean():
    code, out, _ = tiny.run("-m", "pintern.config")
    assert code == 0
    assert "\nconfig.train.steps = 400  # optimizer steps\n" in out
    assert out.startswith("config = ") and "return" not in out


def test_what_a_terminal_cannot_write_is_escaped(monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    code, out, err = tiny.run("-m", "pintern.config")
    assert (code, err) == (0, "")
    assert "  # explicit: \\u03c4 of each level\n" in out
