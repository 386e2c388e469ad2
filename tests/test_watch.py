"""The watcher beside training: each checkpoint scored once, and an end of its own."""

import json
import shutil
import signal
import time

import pytest
import tiny

from pintern.config import to_json
from pintern.errors import UserError
from pintern.training.signals import Signals
from pintern.training.watch import checkpoint_steps, watch


class Told:
    """Signals without processes: what the watcher has been told."""

    def __init__(self, training_ended=False):
        self.training_ended = training_ended
        self.end = self
        self.waits = 0

    def is_set(self):
        return False

    def wait(self, seconds):
        self.waits += 1
        self.training_ended = True


def scores_of(run, told, *, name=lambda config, step: str(step)):
    scored = []

    def score(parts, adapter, step):
        scored.append((step, float(next(iter(adapter.lora.values())).b.sum())))
        folder = run / "eval" / name(parts.config, step)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scores.json").write_text("{}")

    complete = watch(run, told, prepare=lambda c: None, name_of=name, score=score, poll=0.0)
    return complete, scored


def test_each_checkpoint_is_scored_once_the_newest_first(tmp_path):
    run = tiny.copy_of(tiny.trained_run(), tmp_path / "run")
    assert checkpoint_steps(run / "checkpoints") == [6, 8]
    complete, scored = scores_of(run, Told())
    assert complete
    assert [step for step, _ in scored] == [8, 6]
    assert len({value for _, value in scored}) == 2  # each with the adapter of its own step
    assert scores_of(run, Told()) == (True, [])
    # Behind another prompt it is another evaluation; one that a kill cut short is none.
    assert len(scores_of(run, Told(), name=lambda config, step: f"{step}-tau1")[1]) == 2
    (run / "eval" / "6" / "scores.json").write_text('{"score":')
    assert [step for step, _ in scores_of(run, Told())[1]] == [6]


def test_a_run_that_was_stopped_is_scored_as_far_as_it_is(tmp_path):
    run = tiny.copy_of(tiny.trained_run(), tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "8")
    told = Told()
    complete, scored = scores_of(run, told)
    assert not complete
    assert [step for step, _ in scored] == [6]
    assert told.waits == 1  # for more, until it heard that training has ended


def test_a_folder_that_isnt_there_yet_is_waited_for(tmp_path):
    told = Told()
    assert scores_of(tmp_path / "nothing", told) == (False, [])
    assert told.waits == 1


def test_a_checkpoint_that_training_removed_is_left_out_and_a_broken_one_told(
    tmp_path, monkeypatch
):
    run = tiny.copy_of(tiny.trained_run(), tmp_path / "run")
    from pintern.training import watch as module

    seen = module.checkpoint_steps
    late = iter([[6, 7, 8], [6, 7, 8]])  # 7 is gone when its turn comes
    monkeypatch.setattr(module, "checkpoint_steps", lambda folder: next(late, None) or seen(folder))
    assert [step for step, _ in scores_of(run, Told())[1]] == [8, 6]
    monkeypatch.undo()
    for path in (run / "checkpoints" / "8").rglob("*"):
        if path.is_file():
            path.unlink()
    shutil.rmtree(run / "eval")
    with pytest.raises((UserError, OSError)):
        scores_of(run, Told())


@pytest.mark.slow
def test_beside_a_real_run_it_scores_what_comes_and_ends_by_itself(tmp_path):
    run = tmp_path / "run"
    file = tiny.config_file(tmp_path, tiny.config(checkpoint__keep=9, checkpoint__every=4))
    train = ["-m", "pintern.train", f"--config={file}", f"--workdir={run}"]
    process = tiny.start("-m", "launch.local", "--with_eval", "--", tiny.sys.executable, *train)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "[eval] The run's last step is scored." in out
    assert {"4", "8"} >= {path.name for path in (run / "eval").iterdir()} >= {"8"}
    scores = json.loads((run / "eval" / "8" / "scores.json").read_text())
    code, _, err = tiny.run("-m", "pintern.evaluate", f"--workdir={run}")
    assert code == 0, err
    assert json.loads((run / "eval" / "8" / "scores.json").read_text()) == scores


def test_signals_are_heard(monkeypatch):
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        signals = Signals()
        signal.raise_signal(signal.SIGUSR1)
        time.sleep(0)
        assert signals.training_ended
        assert not signals.end.is_set()
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0)
        assert signals.end.is_set()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("flag", ["--base", "--step=6", "--adapter=x"])
def test_what_watching_is_not_for_is_told(flag, tmp_path):
    code, _, err = tiny.run("-m", "pintern.evaluate", "--watch", flag, f"--workdir={tmp_path}")
    assert code == 2
    assert flag.partition("=")[0] in err


def test_a_run_that_trains_nothing_is_not_watched(tmp_path):
    (tmp_path / "eval").mkdir()
    (tmp_path / "config.json").write_text(to_json(tiny.config(adapter__targets=())))
    code, _, err = tiny.run("-m", "pintern.evaluate", "--watch", f"--workdir={tmp_path}")
    assert code == 2
    assert f"{tmp_path} trains nothing" in err
