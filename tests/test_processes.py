"""One run of several processes on this machine (gloo): what one process makes of it."""

import os
import signal
import sys
import time

import jax
import numpy as np
import pytest
import tiny

from pintern.training.loop import train
from pintern.training.restore import restore_run
from pintern.training.workdir import read_config

# A teacher that answers queries and is the student itself: all that processes must agree on.
CHANGES = {
    "distill__weight": 0.5,
    "distill__teacher": "first_stage",
    "distill__unlabelled": 4,
    "adapter__dropout": 0.1,
    "adapter__soft_prompt": 2,
}


def adapter_of(run):
    return jax.tree.map(np.asarray, restore_run(run, read_config(run))[1])


def launch(processes, *command):
    return ("-m", "launch.local", f"--processes={processes}", "--", sys.executable, *command)


@pytest.mark.slow
def test_two_and_four_processes_make_the_run_of_one(tmp_path):
    config = tiny.config(**CHANGES)
    alone = tmp_path / "alone"
    assert train(config, alone)
    wanted = [row["loss"] for row in tiny.lines(alone / "metrics.jsonl")]
    file = tiny.config_file(tmp_path, config)
    for processes in (2, 4):
        run = tmp_path / str(processes)
        command = ("-m", "pintern.train", f"--config={file}", f"--workdir={run}")
        code, said, err = tiny.run(*launch(processes, *command))
        assert code == 0, err
        assert said.count("prompt tokens") == 1, "told once"
        rows = tiny.lines(run / "metrics.jsonl")
        assert [row["step"] for row in rows] == list(range(8)), "written once"
        np.testing.assert_allclose([row["loss"] for row in rows], wanted, rtol=1e-5, atol=1e-6)
        assert (run / "teacher.jsonl").read_bytes() == (alone / "teacher.jsonl").read_bytes()
        pairs = zip(
            jax.tree.leaves(adapter_of(run)), jax.tree.leaves(adapter_of(alone)), strict=True
        )
        for one, two in pairs:
            # Adam blows rounding up where a gradient is next to nothing.
            assert np.abs(one - two).max() <= 1e-3 * np.abs(two).max()
        # The folder is an ordinary run's: one process scores it, and so do several.
        shown = []
        for count in (1, processes):
            asked = ("-m", "pintern.evaluate", f"--workdir={run}")
            code, said, err = tiny.run(*launch(count, *asked))
            assert code == 0, err
            predictions = run / "eval" / "8" / "predictions.jsonl"
            shown.append(predictions.read_text())
            assert said.count("prompt tokens per request") == 1
            predictions.unlink()
        assert shown[0] == shown[1]


@pytest.mark.slow
def test_a_killed_process_ends_the_run_and_the_same_command_goes_on_bit_for_bit(tmp_path):
    config = tiny.config(train__steps=200, checkpoint__every=20)
    file = tiny.config_file(tmp_path, config)
    straight, killed = tmp_path / "straight", tmp_path / "killed"

    def command(run):
        return launch(2, "-m", "pintern.train", f"--config={file}", f"--workdir={run}")

    code, _, err = tiny.run(*command(straight))
    assert code == 0, err
    process = tiny.start(*command(killed))
    metrics = killed / "metrics.jsonl"
    while process.poll() is None and (
        not metrics.exists() or metrics.read_bytes().count(b"\n") < 30
    ):
        time.sleep(0.002)
    os.kill(tiny.pid_of_process(process.pid, 1), signal.SIGKILL)
    began = time.monotonic()
    _, err = process.communicate(timeout=400)
    assert time.monotonic() - began < 60
    assert process.returncode != 0
    assert "process 1 was killed by signal 9 (SIGKILL)" in err
    code, _, err = tiny.run(*command(killed))
    assert code == 0, err
    assert metrics.read_bytes() == (straight / "metrics.jsonl").read_bytes()
    jax.tree.map(np.testing.assert_array_equal, adapter_of(straight), adapter_of(killed))
