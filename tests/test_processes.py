"""One run of several processes on this machine (gloo): what one process makes of it."""

import functools
import os
import signal
import sys
import time
from pathlib import Path

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
@pytest.mark.parametrize(
    "changes",
    # Dropout is drawn by place, and of four processes each has a row, with nothing to pack it with.
    [{"train__pack": False}, {"adapter__dropout": 0.0}],
    ids=["dropout", "packs"],
)
def test_two_and_four_processes_make_the_run_of_one(tmp_path, changes):
    config = tiny.config(**CHANGES | changes)
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


# Long enough to be killed in the middle, with all state that a run has.
LONG = CHANGES | {"train__steps": 120, "checkpoint__every": 10, "checkpoint__stages": True}


@functools.cache
def straight() -> tuple[Path, Path]:
    """Experiment file of the long run and the folder of two processes that nothing stopped."""
    folder = tiny.root() / "processes"
    folder.mkdir()
    file, run = tiny.config_file(folder, tiny.config(**LONG)), folder / "run"
    code, _, err = tiny.run(*command(file, run))
    assert code == 0, err
    return file, run


def command(file, workdir):
    return launch(2, "-m", "pintern.train", f"--config={file}", f"--workdir={workdir}")


def assert_same(run, wanted):
    assert (run / "metrics.jsonl").read_bytes() == (wanted / "metrics.jsonl").read_bytes()
    assert (run / "teacher.jsonl").read_bytes() == (wanted / "teacher.jsonl").read_bytes()
    jax.tree.map(np.testing.assert_array_equal, adapter_of(run), adapter_of(wanted))


@pytest.mark.slow
def test_a_killed_process_ends_the_run_and_the_same_command_goes_on_bit_for_bit(tmp_path):
    file, wanted = straight()
    killed = tmp_path / "killed"
    process = tiny.start(*command(file, killed))
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
    code, _, err = tiny.run(*command(file, killed))
    assert code == 0, err
    assert_same(killed, wanted)


@pytest.mark.slow
def test_two_processes_train_in_a_bucket_though_all_are_killed_there(tmp_path):
    file, wanted = straight()
    bucket, url = tmp_path / "bucket", f"file://{tmp_path}/bucket"
    process = tiny.start(*command(file, url))
    while process.poll() is None and not any(bucket.glob("checkpoints/*.whole")):
        time.sleep(0.002)
    children = [tiny.pid_of_process(process.pid, number) for number in (0, 1)]
    for pid in (process.pid, *children):
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)
    kept = {int(path.stem) for path in bucket.glob("checkpoints/*.whole")}
    assert max(kept) < LONG["train__steps"], "it was over before the kill"
    code, said, err = tiny.run(*command(file, url))
    assert code == 0, err
    assert said.count("Next: python -m pintern.evaluate") == 2
    assert_same(bucket, wanted)
    for name in ("stages", "teacher"):
        assert {p.name for p in (bucket / name).iterdir() if p.is_dir()} == {
            p.name for p in (wanted / name).iterdir()
        }
    code, said, err = tiny.run(*launch(2, "-m", "pintern.evaluate", f"--workdir={url}"))
    assert code == 0, err
    assert said.count("prompt tokens per request") == 1
    assert (bucket / "eval" / "120" / "scores.json").is_file()


@pytest.mark.slow
def test_a_host_whose_cache_is_empty_trains_with_one_whose_isnt(tmp_path):
    """Vectors of the pool are made by all processes or by none."""
    own = (
        "import os, sys, runpy; "
        f"os.environ['XDG_CACHE_HOME'] = '{tmp_path}/cache-' + os.environ['PINTERN_PROCESS_ID']; "
        "runpy.run_module('pintern.train', run_name='__main__')"
    )
    file = tiny.config_file(tmp_path, tiny.config(prompt__retriever="dense", train__steps=2))
    for run in ("first", "second"):
        given = (f"--config={file}", f"--workdir={tmp_path / run}")
        code, _, err = tiny.run(*launch(2, "-c", own, *given))
        assert code == 0, err
        (vectors,) = (tmp_path / "cache-1").rglob("*.npz")
        vectors.unlink()


@pytest.mark.slow
def test_a_folder_that_is_not_shared_is_found_out_at_the_start(tmp_path):
    """Each process is given another folder, as hosts are that have a disk each."""
    own = "import os, sys; sys.argv[-1] += os.environ['PINTERN_PROCESS_ID']; "
    run = own + "import runpy; runpy.run_module('pintern.train', run_name='__main__')"
    file = tiny.config_file(tmp_path, tiny.config())
    given = (f"--config={file}", f"--workdir={tmp_path}/disk-")
    code, _, err = tiny.run(*launch(2, "-c", run, *given))
    assert code != 0
    assert err.count("disk-0 is not one folder for all 2 processes") == 1
    assert err.count("disk-1 is not one folder for all 2 processes") == 1
    assert "Give a folder on a file system that all hosts share, or a bucket" in err
    assert "Traceback" not in err
    assert not list((tmp_path / "disk-0").iterdir())
