"""Jobs in a real Slurm of one node: submitted, attached to, preempted, queued again, ended."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from absl import flags

from launch import slurm
from launch.testing.slurm import missing_programs, one_node
from pintern.errors import UserError
from pintern.training.restore import restore_run
from pintern.training.workdir import read_config

SUMS = [sys.executable, "-m", "launch.testing.psum_job"]


@pytest.fixture(scope="module")
def cluster():
    absent = missing_programs()
    if absent:
        pytest.skip(f"no Slurm here, {', '.join(absent)} not installed (slurm-wlm, munge)")
    # A short path: a socket's may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as folder:
        try:
            with one_node(Path(folder)) as started:
                yield started
        except RuntimeError as error:
            if "didn't start" not in str(error):
                raise
            pytest.skip(f"Slurm is installed and does not start here: {error}")


def launch(cluster, folder, *arguments, command):
    environment = tiny.environment() | cluster.environment
    return subprocess.Popen(
        [sys.executable, "-m", "launch.slurm", f"--log_dir={folder}", *arguments, "--", *command],
        cwd=tiny.REPOSITORY,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process, timeout=400):
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, out, err


def wait_for(true, seconds=400):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def job_of(process):
    line = process.stdout.readline()
    assert line.startswith("Submitted job "), process.communicate()
    return line.split()[2]


def state_of(path):
    return json.loads(path.read_text()) if path.exists() else {"step": 0}


def same_ends(one, two, step):
    """Two runs have the same metrics and the same adapter, bit for bit."""
    assert (one / "metrics.jsonl").read_bytes() == (two / "metrics.jsonl").read_bytes()
    ends = [restore_run(run, read_config(run))[1:] for run in (one, two)]
    assert ends[0][1] == ends[1][1] == step
    jax.tree.map(np.testing.assert_array_equal, ends[0][0], ends[1][0])


@pytest.mark.slow
def test_two_tasks_are_preempted_resume_and_end_as_if_nothing_had_been(cluster, tmp_path):
    """One run of two processes, taken off its node in the middle."""
    made = tiny.config(train__steps=300, checkpoint__every=50, checkpoint__keep=1)
    command = ["-m", "pintern.train", f"--config={tiny.config_file(tmp_path, made)}"]
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    training = [sys.executable, *command]
    process = launch(
        cluster, tmp_path, "--tasks_per_node=2", command=[*training, f"--workdir={stopped}"]
    )
    job = job_of(process)
    wait_for(lambda: (stopped / "metrics.jsonl").exists() and _rows(stopped) > 3)
    cluster.run("scontrol", "requeue", job)
    code, said, err = finish(process)
    assert code == 0, said + err
    assert "Slurm asks the job to end; the job saves (restart 0)" in said
    assert f"job {job} is PENDING (BeginTime)" in err
    two = ("-m", "launch.local", "--processes=2", "--", *training, f"--workdir={straight}")
    code, _, err = tiny.run(*two)
    assert code == 0, err
    same_ends(straight, stopped, 300)


@pytest.mark.slow
def test_training_is_queued_again_by_itself_and_ends_bit_for_bit(cluster, tmp_path):
    made = tiny.config(train__steps=200, checkpoint__every=50, checkpoint__keep=1)
    file = tiny.config_file(tmp_path, made)
    command = [sys.executable, "-m", "pintern.train", f"--config={file}"]
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    process = launch(cluster, tmp_path, command=[*command, f"--workdir={stopped}"])
    job = job_of(process)
    wait_for(lambda: (stopped / "metrics.jsonl").exists() and _rows(stopped) > 3)
    # What --time makes Slurm send to the script before the limit.
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    code, said, err = finish(process)
    assert code == 0, said + err
    assert "the time limit is near; the job saves (restart 0)" in said
    assert "Stopped by a signal; what was trained is saved" in said
    assert "saved; the job is queued again" in said
    assert "Trained." in said
    code, _, err = tiny.run(*command[1:], f"--workdir={straight}")
    assert code == 0, err
    same_ends(straight, stopped, 200)


@pytest.mark.slow
def test_a_second_launch_attaches_and_another_command_is_refused(cluster, tmp_path):
    out = tmp_path / "sums.json"
    command = [*SUMS, f"--out={out}", "--steps=1000", "--seconds=0.2"]
    name = "--name=attach"
    first = launch(cluster, tmp_path, name, command=command)
    job = job_of(first)
    wait_for(lambda: state_of(out)["step"] >= 1)
    code, said, _ = finish(launch(cluster, tmp_path, name, "--nofollow", command=command))
    assert code == 0
    assert f"Job {job} (attach) is there already" in said
    code, _, err = finish(launch(cluster, tmp_path, name, command=[*command, "--steps=2"]))
    assert code == 2
    assert f"Job {job} (attach) is there already, with another command" in err
    # Ctrl-C lets go of the job; scancel ends it, and nothing queues it again.
    first.send_signal(signal.SIGINT)
    code, said, _ = finish(first)
    assert code == 0
    assert f"Job {job} goes on" in said
    again = launch(cluster, tmp_path, name, command=command)
    assert again.stdout.readline().startswith(f"Job {job} ")
    cluster.run("scancel", job)
    code, said, err = finish(again)
    assert code != 0
    assert f"job {job} is CANCELLED" in err
    assert "queued again" not in said
    assert cluster.run("squeue", "--noheader") == ""


@pytest.mark.slow
def test_a_failing_task_ends_the_job_with_its_status(cluster, tmp_path):
    command = ["bash", "-c", "[ $SLURM_PROCID = 1 ] && exit 7; sleep 600"]
    began = time.monotonic()
    code, said, err = finish(launch(cluster, tmp_path, "--tasks_per_node=2", command=command))
    assert time.monotonic() - began < 400  # of 600: on a busy machine starting takes its time
    assert code != 0  # srun's: the highest of all tasks, here of the one that it stopped
    assert "task 1: Exited with exit code 7" in said
    assert "is FAILED (NonZeroExitCode)" in err


@pytest.mark.slow
def test_the_watcher_scores_beside_the_job(cluster, tmp_path):
    file = tiny.config_file(tmp_path, tiny.config())
    run = tmp_path / "run"
    command = [sys.executable, "-m", "pintern.train", f"--config={file}", f"--workdir={run}"]
    code, said, err = finish(launch(cluster, tmp_path, "--with_eval", command=command))
    assert code == 0, said + err
    assert "The run's last step is scored." in said
    assert (run / "eval" / "8" / "scores.json").exists()


def script(*arguments, command=("python", "-m", "pintern.train", "--workdir=a b")):
    values = flags.FlagValues()
    slurm.define(values)
    values(["slurm", *arguments])
    return slurm.batch_script(values, command, "name", Path("/logs/100%.log"))


def test_one_process_per_gpu_or_one_that_sees_all():
    made = script("--nodes=2", "--gpus_per_node=8", "--partition=long", "--time=1:00:00")
    for line in ("nodes=2", "ntasks-per-node=8", "gpus-per-node=8", "partition=long"):
        assert f"#SBATCH --{line}\n" in made
    assert "#SBATCH --time=1:00:00\n" in made
    assert "#SBATCH --output=/logs/100%%.log\n" in made
    assert "JAX_LOCAL_DEVICE_IDS" not in made
    made = script("--gpus_per_node=4", "--tasks_per_node=1", "--sbatch=--account=me")
    assert "export JAX_LOCAL_DEVICE_IDS=0,1,2,3\n" in made
    assert "#SBATCH --account=me\n" in made
    assert "gpus" not in script()
    for given in ("0", "90", "90:30", "2-12", "2-12:30:00", "UNLIMITED"):
        assert f"#SBATCH --time={given}\n" in script(f"--time={given}")
    with pytest.raises(flags.IllegalFlagValueError, match=r"--time=banana.*days-hours"):
        script("--time=banana")
    with pytest.raises(UserError, match="tasks_per_node=3"):
        script("--gpus_per_node=4", "--tasks_per_node=3")


@pytest.mark.parametrize("given", ["2", "2:00", "0:2:00", "0-0:2", "0-0:1:59"])
def test_a_time_limit_within_the_grace_is_refused(given):
    """Slurm would tell the job to save at its start, and it would queue itself again for ever."""
    with pytest.raises(UserError, match=rf"--time={given} is 1[12][09] seconds.*--grace=120"):
        script(f"--time={given}")
    assert f"--time={given}\n" in script(f"--time={given}", "--grace=60")


def test_the_step_is_told_again_how_many_processors_a_task_has():
    made = script("--sbatch=--cpus-per-task=8", "--sbatch=--account=me")
    assert "#SBATCH --cpus-per-task=8\n" in made
    assert "srun --kill-on-bad-exit=1 --cpus-per-task=8 python" in made
    assert "srun --kill-on-bad-exit=1 -c8 python" in script("--sbatch=-c8")


def answers(monkeypatch, printed):
    done = subprocess.CompletedProcess([], 0, stdout=printed, stderr="")
    monkeypatch.setattr(slurm.common, "call", lambda *_, **__: done)


def test_a_job_of_this_name_with_a_comment_of_its_own_is_told(monkeypatch):
    answers(monkeypatch, "12 RUNNING of my other project\n")
    with pytest.raises(UserError, match="Job 12 \\(large\\) is there already"):
        slurm.find_job("large", "0123abcd")


def test_a_job_that_the_site_preempts_for_good_has_ended(monkeypatch, tmp_path):
    answers(monkeypatch, "JobId=12 JobState=PREEMPTED Reason=None ExitCode=0:15\n")
    monkeypatch.setattr(slurm, "_POLL", None)  # nothing to wait for
    assert slurm.follow("12", tmp_path / "log", 0) == 143


def test_the_script_is_bash_whatever_the_command_holds(tmp_path):
    command = ["echo", "it's", 'a "quoted" $word', "`back`", "%j"]
    made = script("--with_eval", command=[*command, "--workdir=/x y"])
    file = tmp_path / "job.sbatch"
    file.write_text(made)
    assert subprocess.run(["bash", "-n", file], capture_output=True).stderr == b""
    line = next(line for line in made.splitlines() if line.startswith("srun "))
    printed = line.removeprefix("srun --kill-on-bad-exit=1 ").removesuffix(" &")
    done = subprocess.run(["bash", "-c", printed], capture_output=True, text=True)
    assert done.stdout == " ".join([*command[1:], "--workdir=/x y"]) + "\n"


def test_a_job_that_saves_sooner_than_slurm_answers_is_queued_again(tmp_path):
    """The step has ended before `scancel`, which told it to, comes back from a busy controller."""
    programs = {
        "srun": 'trap "exit 0" TERM; echo $$ >step; kill -USR1 $PPID; while :; do sleep 0.1; done',
        "scancel": "kill -TERM $(cat step); sleep 1",
        "squeue": "echo RUNNING",
        "scontrol": 'echo "asked: $*"; kill -KILL $PPID',
    }
    for name, code in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{code}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", script()],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "12"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "asked: requeue 12" in done.stdout, (done.returncode, done.stderr)


def test_dry_run_prints_script_and_command_and_needs_no_slurm(tmp_path):
    process = subprocess.run(
        [
            *(sys.executable, "-m", "launch.slurm", "--dry_run", f"--log_dir={tmp_path / 'logs'}"),
            *("--", "train", "--workdir=runs/x"),
        ],
        cwd=tiny.REPOSITORY,
        env={"PATH": "/nowhere"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert "srun --kill-on-bad-exit=1 train --workdir=runs/x &" in process.stdout
    assert "sbatch --parsable" in process.stdout.splitlines()[-1]
    assert not (tmp_path / "logs").exists()


def _rows(run):
    return len((run / "metrics.jsonl").read_text().splitlines())
