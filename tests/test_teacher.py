"""Who the teacher is, and when; and that its time is counted."""

import json
import time

import pytest
import tiny

from pintern.assemble import assemble
from pintern.errors import UserError
from pintern.evaluation.decode import Generator
from pintern.training import loop
from pintern.training.loop import train
from pintern.training.population import train_population
from pintern.training.teacher import answer_log


def test_the_teacher_answers_no_more_queries_than_there_are(tmp_path):
    config = tiny.config(distill__weight=1.0, distill__unlabelled=9)
    with pytest.raises(UserError, match="asks for 9 queries; the task's log has 8"):
        train(config, tmp_path / "run")


@pytest.mark.parametrize(
    "curriculum",
    [{"stages": 1}, {"schedule": "explicit", "keep_rates": (0.0, 0.0), "shots": (0, 0)}],
    ids=["one stage", "equal stages"],
)
def test_the_first_stage_must_be_there_to_give_a_teacher(tmp_path, curriculum):
    config = tiny.config(distill__weight=1.0, distill__teacher="first_stage")
    config.curriculum.update(curriculum)
    with pytest.raises(UserError, match="the curriculum has one level"):
        train(config, tmp_path / "run")


def test_a_teacher_that_answers_nothing_teaches_nothing(tmp_path, monkeypatch, capsys):
    config = tiny.config(distill__weight=1.0, distill__unlabelled=4, distill__labelled=False)
    config.train.ce_weight = 0.0
    nothing = [[] for _ in range(4)]
    monkeypatch.setattr(Generator, "__call__", lambda self, rows, **_: nothing)
    with pytest.raises(UserError, match="answered none of its 4 queries"):
        train(config, tmp_path / "run")
    assert "answer to 4 of 4 queries is empty" in capsys.readouterr().out
    assert not (tmp_path / "run" / "teacher.jsonl").exists()


def test_the_teacher_answers_behind_the_examples_that_training_shows(tmp_path, monkeypatch):
    """A labelled pair that asks a query of the log holds its answer, and is left out of both."""
    log, read = tmp_path / "log.jsonl", []
    asked = tiny.parts().prompts.task.train[0].query
    log.write_text(json.dumps({"query": asked}) + "\n")
    parts = assemble(
        tiny.config(task__unlabelled=str(log), distill__weight=1.0, distill__unlabelled=1)
    )
    monkeypatch.setattr(Generator, "__call__", lambda self, rows, **_: read.extend(rows) or [[9]])
    prompts, shots = parts.prompts, parts.config.distill.shots
    (example,) = answer_log(parts, tmp_path, None)
    (shown,) = prompts.shots_for_log([asked], shots)
    (piece,) = prompts.renderer.pieces([example])
    assert read == [prompts.renderer.row(piece, shown, complete=False).tokens]
    assert prompts.pool[0] not in shown
    assert prompts.pool[0] in prompts.shots_for([asked], shots)[0]


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (b"", "teacher.jsonl is empty"),
        (b'{"query": "Where is the grey pin?", "completion": "she', "line 1: "),
        (b"[1]\n", "line 1: .* is not an object"),
        (b'{"query": "Where is the grey pin?"}\n', "completion is missing"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_answers_that_are_damaged_are_told(tmp_path, held, said):
    """Left out, the run would go on with other examples than it was begun with."""
    (tmp_path / "teacher.jsonl").write_bytes(held)
    with pytest.raises(UserError, match=said):
        answer_log(tiny.parts(), tmp_path, None)


def test_the_teacher_of_the_first_stage_has_its_last_adapter(tmp_path):
    run = tmp_path / "run"
    config = tiny.config(distill__weight=1.0, distill__teacher="first_stage", distill__unlabelled=4)
    assert train(config, run)
    rows = tiny.lines(run / "metrics.jsonl")
    assert [("kl" in row) for row in rows] == [row["keep_rate"] < 1 for row in rows]
    switch = next(row["step"] for row in rows if row["keep_rate"] < 1)
    assert {path.name for path in (run / "teacher").iterdir()} == {str(switch)}
    # Up to there it is the run without distillation.
    plain = tiny.lines(tiny.trained_run() / "metrics.jsonl")
    assert [row["loss"] for row in plain][:switch] == [row["loss"] for row in rows][:switch]
    assert len(tiny.lines(run / "teacher.jsonl")) <= 4


def test_the_time_that_a_teacher_takes_to_answer_is_the_trainings(tmp_path, monkeypatch):
    hours, clock = [0], time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + 3600 * hours[0])

    def for_an_hour(*given, **named):
        hours[0] += 1
        return answer_log(*given, **named)

    monkeypatch.setattr(loop, "answer_log", for_an_hour)
    changes = {"distill__weight": 0.5, "distill__teacher": "base", "distill__unlabelled": 4}
    changes |= {"curriculum__stages": 1, "train__steps": 2}  # one program each
    configs = [tiny.config(seed=seed, **changes) for seed in (0, 1)]
    members = [tmp_path / name for name in "ab"]
    train_population(configs, members)
    assert train(configs[0], tmp_path / "alone")
    for folder in (*members, tmp_path / "alone"):
        seconds = sum(row["seconds"] for row in tiny.lines(folder / "timings.jsonl"))
        assert 3600 <= seconds < 7200
