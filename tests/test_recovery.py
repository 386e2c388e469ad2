"""Runs that are killed, at any moment: they resume, and end as if nothing had been."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
import tiny

from pintern.assemble import Parts, assemble, fresh_adapter
from pintern.config import to_json
from pintern.training.checkpoint import Checkpoints, checkpoint_steps
from pintern.training.loop import train
from pintern.training.restore import restore_run
from pintern.training.step import TrainState, make_optimizer
from pintern.training.workdir import read_config

# All state that a run has: an adaptive curriculum, a teacher and its answers, dropout, a soft
# prompt, stages that are kept. The two levels are 12 steps each, and the first ends early.
EVERYTHING = {
    "prompt__retriever": "random",
    "train__steps": 24,
    "checkpoint__every": 3,
    "checkpoint__stages": True,
    "adapter__dropout": 0.1,
    "adapter__soft_prompt": 2,
    "curriculum__schedule": "adaptive",
    "curriculum__patience": 5,
    "curriculum__probe": 4,
    "curriculum__epsilon": 100.0,
    "distill__weight": 0.5,
    "distill__teacher": "first_stage",
    "distill__shots": 1,
    "distill__unlabelled": 4,
}
KILLS = int(os.environ.get("PINTERN_KILLS", "20"))  # a kill takes half a minute on two cores


class Moment(NamedTuple):
    """When to kill: so long after a file like this comes into being, or lines are written."""

    pattern: str
    lines: int
    delay: float


def lines_of(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def moments(drawn: random.Random) -> list[Moment]:
    """So many, in any order: in writes, in removals, between stages, and anywhere."""
    half = "*.orbax-checkpoint-tmp*"
    patterns = [f"checkpoints/{half}"] * 6 + ["checkpoints/*.removed"] * 2
    patterns += [f"teacher/{half}", f"stages/{half}", "teacher", "teacher.jsonl*", "config.json"]
    found = [Moment(pattern, 0, drawn.choice([0, 0.002, 0.01])) for pattern in patterns]
    while len(found) < KILLS:
        found.append(Moment("", drawn.randint(0, 9), drawn.uniform(0, 0.2)))
    drawn.shuffle(found)
    return found[:KILLS]


def kill_at(process: subprocess.Popen, run: Path, moment: Moment) -> bool:
    """Whether the moment came before the run was over."""
    lines, there = lines_of(run), set(run.glob(moment.pattern or "nothing"))
    while process.poll() is None:
        found = set(run.glob(moment.pattern or "nothing"))
        come = found - there if moment.pattern else lines_of(run) >= lines + moment.lines
        there &= found  # what an earlier kill left is cleared away, and may come again
        if come:
            time.sleep(moment.delay)
            if process.poll() is None:
                process.kill()
                process.wait()
                return True
        time.sleep(0.0005)
    return False


def template_of(parts: Parts) -> TrainState:
    adapter = fresh_adapter(parts)
    return TrainState(adapter, make_optimizer(parts.config.train).init(adapter))


def state_at(folder: Path, step: int, template: TrainState) -> list[bytes]:
    """Bits of all that a checkpoint holds."""
    checkpoints = Checkpoints(folder, writes=False)
    _, state, curriculum = checkpoints.restore(template, step)
    leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]
    return [*leaves, repr(curriculum).encode()]


@pytest.mark.slow
def test_killed_at_twenty_moments_a_run_ends_as_if_nothing_had_been(tmp_path):
    seed = int(os.environ.get("PINTERN_KILL_SEED", "0"))
    config = tiny.config(**EVERYTHING)
    whole, run = tmp_path / "whole", tmp_path / "run-0"
    every_step = tiny.config(**EVERYTHING | {"checkpoint__every": 1, "checkpoint__keep": 99})
    assert train(every_step, whole)
    stages = [row["keep_rate"] for row in tiny.lines(whole / "metrics.jsonl")]
    assert 1.0 in stages[:12]
    assert 0.0 in stages[:12], "the first stage was to end early"
    template = template_of(assemble(config, prompts_directory=whole / "prompts"))
    wanted = {
        (name, step): state_at(whole / name, step, template)
        for name in ("checkpoints", "stages", "teacher")
        for step in checkpoint_steps(whole / name)
    }

    (tmp_path / "killed.json").write_text(to_json(config))

    def ready() -> subprocess.Popen:
        killed = Path(__file__).with_name("killed.py")
        return subprocess.Popen(
            [sys.executable, str(killed), str(tmp_path / "killed.json")],
            env=tiny.environment() | {"PYTHONPATH": str(tiny.REPOSITORY)},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=(tmp_path / "stderr").open("ab"),
        )

    def is_whole(run: Path) -> None:
        """Every checkpoint that counts is whole, and the uninterrupted run's of that step."""
        for name in ("checkpoints", "stages", "teacher"):
            for step in checkpoint_steps(run / name):
                assert state_at(run / name, step, template) == wanted[name, step], (name, step)

    def is_the_same(run: Path) -> None:
        is_whole(run)
        assert checkpoint_steps(run / "checkpoints")[-1] == 24
        for name in ("metrics.jsonl", "teacher.jsonl", "prompts/levels.json"):
            assert (run / name).read_bytes() == (whole / name).read_bytes(), name

    todo, kills, number = deque(moments(random.Random(seed))), 0, 0
    hits: dict[str, int] = {}
    standing_by = deque([ready(), ready()])
    try:
        while todo:
            moment = todo.popleft()
            at = f"seed {seed}, kill {kills}, {moment}"
            process = standing_by.popleft()
            standing_by.append(ready())
            process.stdin.write(f"{run}\n".encode())
            process.stdin.flush()
            if kill_at(process, run, moment):
                kills += 1
                hits[moment.pattern] = hits.get(moment.pattern, 0) + 1
                try:
                    is_whole(run)
                except BaseException as error:
                    error.add_note(at)
                    raise
                continue
            # The run was over before this moment came: it is as it should be, and another begins.
            assert process.wait() == 0, (at, (tmp_path / "stderr").read_text()[-2000:])
            is_the_same(run)
            number += 1
            run = tmp_path / f"run-{number}"
            todo.appendleft(moment)
        process = standing_by.popleft()
        process.communicate(f"{run}\n".encode(), timeout=300)
        assert process.returncode == 0, (seed, (tmp_path / "stderr").read_text()[-2000:])
        is_the_same(run)
    finally:
        for process in standing_by:
            process.kill()
            process.wait()
    assert kills == KILLS
    assert hits == Counter(moment.pattern for moment in moments(random.Random(seed)))


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_goes_on(tmp_path):
    run = tiny.copy_of(tiny.trained_run(), tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    file = tiny.config_file(tmp_path, tiny.config())
    process = tiny.start("-m", "pintern.train", f"--config={file}", f"--workdir={run}")
    while process.poll() is None and lines_of(run) not in range(2, 7):
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, (out, err)
    assert "Stopped by a signal" in out
    assert checkpoint_steps(run / "checkpoints")[-1] == lines_of(run) < 8
    assert train(tiny.config(), run)
    one, two = (restore_run(r, read_config(r))[1] for r in (run, tiny.trained_run()))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
