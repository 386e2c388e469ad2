"""What a run's folder may be resumed with, and how a change is noted."""

import dataclasses
import errno
import json
import os

import pytest
import tiny

from pintern.config import from_json, to_json
from pintern.errors import UserError
from pintern.folders import LOCK
from pintern.locks import try_lock
from pintern.training.checkpoint import remove_checkpoint
from pintern.training.loop import train
from pintern.training.population import train_population
from pintern.training.workdir import (
    check_base,
    claim,
    only_training,
    read_config,
    record_changes,
)


@pytest.fixture
def run(tmp_path):
    """A folder with the unchanged config's run, begun."""
    folder = tmp_path / "run"
    claim(folder, tiny.config())
    check_base(folder, tiny.parts().checkpoint)
    return folder


@pytest.mark.parametrize("together", [False, True])
def test_one_training_at_a_time_has_a_folder(tmp_path, together):
    config, run = tiny.config(adapter__targets=(), adapter__soft_prompt=2), tmp_path / "run"

    def begin():
        return train_population([config], [run]) if together else train(config, run)

    who = rf"being trained by another process \({os.getpid()} on {os.uname().nodename}\)"
    with only_training(run):
        with pytest.raises(UserError, match=who):
            begin()
        assert [path.name for path in run.iterdir()] == [LOCK]
    claim(run, config)  # it's free again, and the lock's file says nothing of whose it is


def test_a_folder_where_nothing_can_be_locked_is_trained_in(tmp_path, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with only_training(tmp_path / "run"):
        assert "can't be locked: No locks available" in capsys.readouterr().err
    with pytest.raises(UserError, match="can't be locked"), try_lock(tmp_path / "cell"):
        pass


def changes(run):
    return tiny.lines(run / "changes.jsonl")


def test_how_often_a_run_writes_may_change_and_is_noted(run):
    config = tiny.config(checkpoint__every=5, checkpoint__minutes=2.0, train__log_every=3)
    with pytest.raises(UserError, match=r"checkpoint\.every: 2 → 5"):
        claim(run, config)  # a population, whose members are known by their whole config
    assert claim(run, config, free=True)
    assert read_config(run) == tiny.config()  # it may yet fail to go on
    told = record_changes(run, config, tiny.parts().checkpoint, step=6)
    assert told == [
        "checkpoint.every: 2 → 5",
        "checkpoint.minutes: 0.0 → 2.0",
        "train.log_every: 1 → 3",
    ]
    assert changes(run) == [{"step": 6, "changed": told}]
    assert read_config(run) == config
    assert not record_changes(run, config, tiny.parts().checkpoint, step=6)
    assert len(changes(run)) == 1


def test_a_kill_between_the_note_and_the_config_notes_it_once(run):
    config = tiny.config(checkpoint__keep=7)
    record_changes(run, config, tiny.parts().checkpoint, step=6)
    (run / "config.json").write_text(to_json(tiny.config()))
    record_changes(run, config, tiny.parts().checkpoint, step=6)
    assert len(changes(run)) == 1
    assert read_config(run) == config


def test_what_leads_elsewhere_changes_on_request_alone(run):
    config = tiny.config(train__steps=12, train__learning_rate=0.5)
    with pytest.raises(UserError) as raised:
        claim(run, config, free=True)
    assert "train.learning_rate: 0.002 → 0.5; train.steps: 8 → 12" in str(raised.value)
    assert "--allow_changed=config" in str(raised.value)
    assert claim(run, config, free=True, on_request=True)


@pytest.mark.parametrize(
    ("field", "value"),
    [("seed", 1), ("prompt__max_shots", 0), ("adapter__rank", 4), ("distill__unlabelled", 3)],
)
def test_what_has_left_its_trace_never_changes(run, field, value):
    before = (run / "config.json").read_bytes()
    config = tiny.config(**{field: value})
    with pytest.raises(UserError, match=f"{field.replace('__', '.')}: .* → {value}") as raised:
        claim(run, config, free=True, on_request=True)
    assert "can't change in mid-run" in str(raised.value)
    with pytest.raises(UserError) as raised:
        claim(run, config, free=True)
    assert "--allow_changed" not in str(raised.value)
    assert (run / "config.json").read_bytes() == before


def test_another_base_is_named_and_taken_on_request(run):
    other = dataclasses.replace(tiny.parts().checkpoint, fingerprint="f" * 64)
    with pytest.raises(UserError, match=r"another base: fingerprint \w{12} .* not ffffffffffff"):
        check_base(run, other)
    check_base(run, other, may_change=True)
    told = record_changes(run, tiny.config(), other, step=4)
    assert len(told) == 1
    assert told[0].startswith("base: ")
    assert json.loads((run / "base.json").read_text())["fingerprint"] == "f" * 64
    check_base(run, other)


@pytest.mark.parametrize("held", ["{", "[1]", "{}"])
def test_a_record_that_is_damaged_is_named(run, held):
    (run / "base.json").write_text(held)
    with pytest.raises(UserError, match=r"base\.json (is not valid JSON|holds a JSON|has no)"):
        check_base(run, tiny.parts().checkpoint)
    assert (run / "base.json").read_text() == held


def test_a_field_that_is_newer_than_a_run_has_its_default():
    text = json.loads(to_json(tiny.config()))
    del text["checkpoint"]["minutes"]
    del text["mesh"]
    assert from_json(json.dumps(text)) == tiny.config()
    text["checkpoint"]["hours"] = 1
    with pytest.raises(UserError, match=r"checkpoint\.hours is not a field"):
        from_json(json.dumps(text))


def test_a_run_goes_on_with_what_was_allowed(tmp_path):
    whole, run = tiny.trained_run(), tiny.copy_of(tiny.trained_run(), tmp_path / "run")
    remove_checkpoint(run / "checkpoints", 8)
    assert train(tiny.config(checkpoint__every=1), run)
    assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert train(tiny.config(checkpoint__every=1, train__steps=9), run, allow_changed=("config",))
    assert [row["step"] for row in tiny.lines(run / "metrics.jsonl")] == list(range(9))
    assert changes(run) == [
        {"step": 6, "changed": ["checkpoint.every: 2 → 1"]},
        {"step": 8, "changed": ["train.steps: 8 → 9"]},
    ]


@pytest.mark.parametrize("left", [(), ("checkpoints/0/x", "metrics.jsonl", "diverged.json")])
def test_a_start_that_came_to_nothing_is_set_aside_for_another_config(run, left, capsys):
    (run / "prompts").mkdir()
    for name, text in {"prompts/template-0.50.txt": "edited", "teacher.jsonl": "answers"}.items():
        (run / name).write_text(text)
    for name in left:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).touch()
    config = tiny.config(adapter__rank=4)
    with pytest.raises(UserError, match=r"adapter\.rank: 2 → 4"):
        claim(run, config)  # somebody may be training in it
    assert claim(run, tiny.config(name="other"), free=True, alone=True)
    assert not claim(run, config, free=True, alone=True)
    assert read_config(run) == config
    aside = run / "replaced" / "1"
    assert {path.name for path in run.iterdir()} == {"config.json", "replaced"}
    assert str(aside) in capsys.readouterr().out
    assert (aside / "prompts" / "template-0.50.txt").read_text() == "edited"
    assert (aside / "teacher.jsonl").read_text() == "answers"
    assert read_config(aside) == tiny.config()
    # Another process of the run finds it done; what a kill in the middle of it left goes there too.
    (run / "teacher.jsonl").write_text("answers")
    assert not claim(run, config, free=True, alone=True)
    assert (run / "teacher.jsonl").exists()
    assert not claim(run, tiny.config(), free=True, alone=True)
    assert (run / "replaced" / "2" / "teacher.jsonl").exists()


@pytest.mark.parametrize(
    "made", ["checkpoints/2/x", "stages/4/x", "teacher/4/x", "eval/base/x", "metrics.jsonl"]
)
@pytest.mark.parametrize("recorded", [True, False])
def test_what_was_trained_or_scored_is_never_set_aside(run, made, recorded):
    (run / made).parent.mkdir(parents=True, exist_ok=True)
    (run / made).write_text("{}\n")
    if not recorded:
        (run / "base.json").unlink()
    with pytest.raises(UserError, match=r"adapter\.rank: 2 → 4"):
        claim(run, tiny.config(adapter__rank=4), free=True, alone=True)
    assert claim(run, tiny.config(), free=True, alone=True)
    assert read_config(run) == tiny.config()


def test_a_mistake_in_the_adapter_is_told_before_the_folder_is_the_runs(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(UserError, match="'foo' matches no linear module"):
        train(tiny.config(adapter__targets=("foo",)), run)
    assert {path.name for path in run.iterdir()} == {"config.json", LOCK}
    assert not claim(run, tiny.config(), alone=True)
