"""Several processes on this machine, started, watched and ended together. Nothing is faked."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import tiny

from launch import common, local
from launch.processes import Child, supervise
from pintern.errors import UserError


def launch(*arguments, command, **options):
    return tiny.start("-m", "launch.local", *arguments, "--", *command, **options)


def finish(process, timeout=400):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def python(code):
    return [sys.executable, "-c", code]


@pytest.mark.slow
def test_two_processes_add_up_over_gloo(tmp_path):
    out = tmp_path / "sums.json"
    command = [sys.executable, "-m", "launch.testing.psum_job", f"--out={out}"]
    code, said, err = finish(launch("--processes=2", command=command))
    assert code == 0, err
    state = json.loads(out.read_text())
    # Step k adds (1 + k) + (2 + k) to half of what there is: 3, 6.5, 10.25.
    assert state == {"step": 3, "sum": 10.25, "starts": 1, "processes": 2}
    for i in (0, 1):
        assert f"[{i}] step 3 of 3, sum 10.25" in said


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_a_second_run_goes_on(tmp_path):
    out = tmp_path / "sums.json"
    command = [sys.executable, "-m", "launch.testing.psum_job", f"--out={out}"]
    slow = [*command, "--steps=6", "--seconds=0.5"]
    process = launch("--processes=2", "--grace=5", command=slow)
    try:
        _wait_for(lambda: out.exists() and json.loads(out.read_text())["step"] >= 2, process)
        victim = tiny.pid_of_process(process.pid, 1)
        os.kill(victim, signal.SIGKILL)
        began = time.monotonic()
        code, _, err = finish(process)
    finally:
        process.kill()
    assert time.monotonic() - began < 60
    assert code == 128 + signal.SIGKILL
    assert "process 1 was killed by signal 9 (SIGKILL)" in err
    code, _, err = finish(launch("--processes=2", command=[*command, "--steps=6"]))
    assert code == 0, err
    resumed = json.loads(out.read_text())
    assert resumed.pop("starts") == 2
    out.unlink()
    assert finish(launch("--processes=2", command=[*command, "--steps=6"]))[0] == 0
    uninterrupted = json.loads(out.read_text())
    assert uninterrupted.pop("starts") == 1
    assert resumed == uninterrupted


@pytest.mark.slow
def test_sigterm_reaches_all_which_save_and_end(tmp_path):
    out = tmp_path / "sums.json"
    command = [sys.executable, "-m", "launch.testing.psum_job", f"--out={out}"]
    process = launch("--processes=2", command=[*command, "--steps=1000", "--seconds=0.2"])
    try:
        _wait_for(lambda: out.exists() and json.loads(out.read_text())["step"] >= 2, process)
        process.send_signal(signal.SIGTERM)
        code, _, err = finish(process)
    finally:
        process.kill()
    assert code == 0, err
    assert json.loads(out.read_text())["step"] < 1000


def test_the_first_failure_is_named_and_its_status_handed_on():
    code = "import os, sys, time; sys.exit(7) if os.environ['PINTERN_PROCESS_ID'] == '2' else 0;"
    began = time.monotonic()
    status, _, err = finish(launch("--processes=3", command=python(code + "time.sleep(600)")))
    assert status == 7
    assert "process 2 ended with exit status 7; stopping process 0, 1" in err
    assert time.monotonic() - began < 30


def test_who_ignores_sigterm_is_killed_after_the_grace():
    stubborn = (
        "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "time.sleep(1); sys.exit(3) if os.environ['PINTERN_PROCESS_ID'] == '0' else 0;"
        "time.sleep(600)"
    )
    began = time.monotonic()
    status, _, _ = finish(launch("--processes=2", "--grace=1", command=python(stubborn)))
    assert status == 3
    assert time.monotonic() - began < 30


def test_output_is_prefixed_line_by_line_and_streams_stay_apart():
    code = (
        "import os, sys; i = os.environ['PINTERN_PROCESS_ID'];"
        "[print('out', i, 'x' * 5000) for _ in range(50)]; print('err', i, file=sys.stderr, end='')"
    )
    status, out, err = finish(launch("--processes=2", command=python(code)))
    assert status == 0
    assert len(out.splitlines()) == 100
    assert all(re.fullmatch(r"\[(\d)\] out \1 x{5000}", line) for line in out.splitlines())
    assert sorted(err.splitlines()) == ["[0] err 0", "[1] err 1"]


def test_what_a_script_leaves_behind_does_not_hold_the_launcher():
    began = time.monotonic()
    status, out, _ = finish(launch(command=["bash", "-c", "sleep 60 & echo $!; exit 3"]))
    os.kill(int(out), signal.SIGKILL)
    assert status == 3
    assert time.monotonic() - began < 30


def test_what_a_script_started_is_waited_for_while_it_saves():
    """The script itself dies of the signal at once; longer than the last words may take."""
    saves = (
        "import signal, time; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]);"
        "print('up', flush=True); signal.sigwait([signal.SIGTERM]); time.sleep(7); print('saved')"
    )
    process = launch(command=["bash", "-c", f"{shlex.join(python(saves))}; true"])
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    assert finish(process)[:2] == (0, "saved\n")


def test_who_is_killed_before_it_saved_is_no_success():
    """By the third Ctrl-C, as here, or by a system that is out of memory."""
    saves = (
        "import signal, time; signal.signal(signal.SIGTERM, lambda *_: print('told', flush=True));"
    )
    process = launch(command=python(saves + "print('up', flush=True); time.sleep(600)"))
    assert process.stdout.readline() == "up\n"
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "told\n"
    process.send_signal(signal.SIGINT)
    status, _, err = finish(process)
    assert status == 128 + signal.SIGKILL
    assert "was killed by signal 9" in err


def test_one_process_runs_as_it_stands():
    code = "import os; print('PINTERN_NUM_PROCESSES' in os.environ)"
    assert finish(launch(command=python(code)))[:2] == (0, "False\n")


def test_a_second_launch_of_a_run_is_refused(tmp_path):
    command = [*python("import time; print('up', flush=True); time.sleep(600)")]
    command.append(f"--workdir={tmp_path / 'run'}")
    process = launch(command=command)
    try:
        assert process.stdout.readline() == "up\n"
        status, _, err = finish(launch(command=command))
        assert status == 2
        assert f"is being run by another launch on this machine (process {process.pid})" in err
    finally:
        process.terminate()
        assert finish(process)[0] == 0


def test_a_killed_launcher_leaves_nobody_behind():
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    process = launch("--processes=2", command=python(code))
    children = [int(process.stdout.readline().split()[-1]) for _ in range(2)]
    process.kill()
    process.communicate()
    _wait_for(lambda: not any(_runs(pid) for pid in children))


def test_dry_run_prints_what_would_run_and_runs_nothing(tmp_path):
    marker = tmp_path / "ran"
    command = ["touch", str(marker), f"--workdir={tmp_path}/a b"]
    status, out, _ = finish(launch("--processes=2", "--with_eval", "--dry_run", command=command))
    assert status == 0
    assert not marker.exists()
    first, second, watcher = out.splitlines()
    assert shlex.split(first)[-3:] == command
    variables = dict(word.split("=", 1) for word in shlex.split(second)[:-3])
    assert variables["PINTERN_NUM_PROCESSES"] == "2"
    assert variables["PINTERN_PROCESS_ID"] == "1"
    # Pasted into a shell it is the same command.
    assert shlex.split(watcher) == [
        "JAX_PLATFORMS=cpu",
        *["python", "-m", "pintern.evaluate", "--watch", f"--workdir={tmp_path}/a b"],
    ]


def test_gpus_are_shared_out():
    plan = local.children(["train"], 2, port=1, gpus=["0", "1", "2", "3"])
    assert [child.environment["CUDA_VISIBLE_DEVICES"] for child in plan] == ["0,1", "2,3"]
    with pytest.raises(UserError, match=r"3 can't share 4 GPUs"):
        local.children(["train"], 3, port=1, gpus=["0", "1", "2", "3"])
    assert local.visible_gpus({"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "0"}) == []
    assert local.visible_gpus({"CUDA_VISIBLE_DEVICES": "2,3"}) == ["2", "3"]
    # Set to nothing it is as good as unset, to JAX too.
    assert local.visible_gpus({"JAX_PLATFORMS": "", "CUDA_VISIBLE_DEVICES": "2"}) == ["2"]


@pytest.mark.parametrize("workdir", ["gs://b/r", "gcs://b/r", "s3://b/r", "s3a://b/r", "az://b/r"])
def test_a_bucket_is_what_training_takes_for_one(workdir):
    assert common.is_bucket(workdir)
    assert common.run_name([f"--workdir={workdir}"], absolute=True).startswith("pintern-r-")


@pytest.mark.parametrize("workdir", ["file:///r", "memory://r", "/mnt/r", None])
def test_a_folder_of_the_machine_is_no_bucket(workdir):
    assert not common.is_bucket(workdir)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes=0", "--", "true"], "not a positive integer"),
        (["--processes=2"], "There is no command to run"),
        (["python", "-m", "pintern.train"], "There is no command to run. Give it behind `--`"),
        (["--proceses=2", "--", "true"], "proceses"),
        (["python", "--", "true"], "goes behind `--`"),
        (["--with_eval", "--", "true"], "has no --workdir"),
        (["--", "no-such-program-here"], "can't be started"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, message):
    status, _, err = finish(tiny.start("-m", "launch.local", *arguments))
    assert status == 2
    assert err.startswith("error:")
    assert message in err
    assert "Traceback" not in err


def test_a_watcher_fails_alone_and_is_told_when_training_ends(capfd):
    plan = [
        Child("", python("import time; time.sleep(1)"), {}),
        Child("eval", python("raise SystemExit(5)"), {}, watcher=True),
    ]
    assert supervise(plan, grace=1) == 0
    assert "eval ended with exit status 5; training went on without it" in capfd.readouterr().err
    waits = (
        "import signal; print('there', flush=True); signal.sigwait([signal.SIGUSR1]); print('told')"
    )
    blocked = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]);" + waits
    plan[1] = Child("eval", python(blocked), {}, watcher=True)
    assert supervise(plan, grace=1) == 0
    assert "[eval] told" in capfd.readouterr().out


def test_names_of_runs_stay_and_differ(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = common.run_name(["train", "--workdir=runs/My Run!"], absolute=True)
    absolute = ["train", "--workdir", str(tmp_path / "runs" / "My Run!")]
    assert relative == common.run_name(absolute, absolute=True)
    assert re.fullmatch(r"pintern-my-run-[0-9a-f]{8}", relative)
    assert common.check_name(relative)
    other = common.run_name(["train", "--workdir=other/My Run!"], absolute=True)
    assert other != relative
    with pytest.raises(UserError, match="--name=Bad_Name"):
        common.check_name("Bad_Name")


def _wait_for(true, process=None, seconds=300):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.05)


def _runs(pid):
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return state.stdout.strip()[:1] not in ("", "Z")
