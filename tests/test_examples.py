"""A run is resumed with the examples that it was begun with."""

import dataclasses
import json

import pytest
import tiny

from pintern.errors import UserError
from pintern.training.checkpoint import remove_checkpoint
from pintern.training.examples import check_examples
from pintern.training.joint_parts import assemble_members
from pintern.training.loop import train
from pintern.training.restore import restore_run
from pintern.training.workdir import check_base, claim, read_config

TAUGHT = {"distill__weight": 0.5, "distill__unlabelled": 4}


def parts_with(config=None, **changes):
    parts = tiny.parts()
    task = dataclasses.replace(parts.prompts.task, **changes)
    prompts = dataclasses.replace(parts.prompts, task=task)
    return dataclasses.replace(parts, config=config or parts.config, prompts=prompts)


@pytest.fixture
def run(tmp_path):
    """A folder with a run of two steps, which saw the log's queries too."""
    folder, config = tmp_path / "run", tiny.config(**TAUGHT)
    claim(folder, config)
    check_base(folder, tiny.parts().checkpoint)
    check_examples(folder, parts_with(config))
    (folder / "checkpoints" / "2").mkdir(parents=True)
    return folder


def pairs():
    return tiny.parts().prompts.task.train


def queries():
    return tiny.parts().prompts.task.unlabelled


OTHERS = {
    "fewer": ("labelled pairs", lambda: {"train": pairs()[:20]}),
    "another order": ("labelled pairs", lambda: {"train": pairs()[::-1]}),
    "another answer": (
        "labelled pairs",
        lambda: {"train": (dataclasses.replace(pairs()[0], completion="x"), *pairs()[1:])},
    ),
    "another log": ("queries of the log", lambda: {"unlabelled": (*queries()[1:], "Where?")}),
}


@pytest.mark.parametrize("other", OTHERS)
def test_other_examples_are_refused(run, other):
    what, changes = OTHERS[other]
    config, before = tiny.config(**TAUGHT), (run / "examples.json").read_bytes()
    check_examples(run, parts_with(config))
    with pytest.raises(UserError, match=f"other {what} .*: (24|8) with digest .*, not "):
        check_examples(run, parts_with(config, **changes()))
    assert (run / "examples.json").read_bytes() == before


def test_templates_that_were_edited_since_are_refused(run):
    parts = parts_with(tiny.config(**TAUGHT))
    rung = dataclasses.replace(parts.prompts.ladder[1.0], text="bolts lie on shelf four")
    prompts = dataclasses.replace(parts.prompts, ladder=parts.prompts.ladder | {1.0: rung})
    edited = dataclasses.replace(parts, prompts=prompts)
    with pytest.raises(UserError, match=r"other templates .* in .*run/prompts\. Put the old"):
        check_examples(run, edited)
    record = json.loads((run / "examples.json").read_text())
    del record["templates"]
    (run / "examples.json").write_text(json.dumps(record))
    check_examples(run, edited)  # an older run


def test_what_a_run_does_not_learn_from_may_change(run):
    (run / "examples.json").unlink()
    check_examples(run, parts_with())  # an older run: its record begins now
    named = tuple(dataclasses.replace(pair, id=f"new-{i}") for i, pair in enumerate(pairs()))
    check_examples(run, parts_with(train=named, unlabelled=queries()[:3], test=pairs()[:1]))
    with pytest.raises(UserError, match="labelled pairs"):
        check_examples(run, parts_with(train=pairs()[:3]))


def test_where_nothing_came_of_a_run_its_data_may_be_mended(run):
    (run / "checkpoints" / "2").rmdir()
    (run / "teacher.jsonl").write_text("answers to the old queries")
    mended = parts_with(tiny.config(**TAUGHT), train=pairs()[:20])
    check_examples(run, mended)
    assert not (run / "teacher.jsonl").exists()
    assert json.loads((run / "examples.json").read_text())["labelled pairs"]["count"] == 20
    check_examples(run, mended)


def test_a_changed_file_stops_training_and_no_evaluation(tmp_path):
    run = tiny.copy_of(tiny.trained_run(), tmp_path / "run")
    remove_checkpoint(run / "checkpoints", 8)
    data, metrics = tmp_path / "train.jsonl", (run / "metrics.jsonl").read_bytes()
    config = read_config(run)
    lines = (tiny.task() / "train.jsonl").read_text().splitlines(keepends=True)
    data.write_text("".join(lines[:20]))
    config.task.train = str(data)
    (run / "config.json").write_text(config.to_json())
    with pytest.raises(UserError, match=r"trained on other labelled pairs .* 24 .* not 20 with"):
        train(config, run)
    with pytest.raises(UserError, match=r"trained on other labelled pairs .* 24 .* not 20 with"):
        assemble_members([config], [run], [True])
    assert (run / "metrics.jsonl").read_bytes() == metrics
    assert restore_run(run, config)[2] == 6
    data.write_text("".join(lines))
    assert train(config, run)
