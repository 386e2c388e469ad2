"""The launcher of Cloud TPU VMs against a `gcloud` that replays a cloud."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
import tiny

from launch import ship
from launch.common import STOPPED
from launch.testing.fake_gcloud import install
from launch.tpu_states import FAILURE_LIMIT, UNREACHABLE_LIMIT
from pintern.errors import UserError

UP = {"request": "ACTIVE", "vm": "READY"}
QUOTA = (
    "RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepodPerProjectPerZoneForTPUAPI' has been exceeded."
)


class Replay:
    """A scenario, and the launcher run in it."""

    def __init__(self, folder, workers=2, **scenario):
        self.folder = folder / "cloud"
        programs = install(self.folder, {"workers": workers, **scenario})
        self.environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}
        self.counter = folder / "starts"  # outlives every VM, as a bucket does

    def start(self, code, *flags):
        arguments = ["--name=vm", "--zone=z", "--poll=0.1", "--setup=true", *flags]
        if "--existing" not in flags:
            arguments.append("--type=v5litepod-16")
        command = ["bash", "-c", code, f"--workdir={self.counter}"]
        return subprocess.Popen(
            [sys.executable, "-m", "launch.tpu_vm", *arguments, "--", *command],
            cwd=tiny.REPOSITORY,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, code, *flags):
        process = self.start(code, *flags)
        try:
            out, err = process.communicate(timeout=400)
        finally:
            process.kill()
        return process.returncode, out, err

    def verbs(self):
        """The kinds of calls, looks left out, repeated ones once."""
        made = [tuple(call[2:4]) for call in tiny.lines(self.folder / "calls.jsonl")]
        names = {"queued-resources": "queue", "tpu-vm": "vm"}
        done = [f"{names[kind]} {verb}" for kind, verb in made if verb != "describe"]
        return [verb for verb, _ in itertools.groupby(done)]

    def close(self):
        for pid in self.folder.glob("worker-*/pintern-launch/*/*pid"):
            try:
                os.killpg(int(pid.read_text()), signal.SIGKILL)
            except OSError:
                continue


@pytest.fixture
def replay(tmp_path):
    made = []

    def make(**scenario):
        made.append(Replay(tmp_path, **scenario))
        return made[-1]

    yield make
    for each in made:
        each.close()


# Counts its starts over all VMs; the first `$1` of them last for ever.
def job(lasting=0, workers=2):
    return (
        f'echo x >>"${{0#--workdir=}}"; n=$(wc -l <"${{0#--workdir=}}"); echo "start of $PWD";'
        f' [ "$n" -gt {lasting * workers} ] || exec sleep 600; echo done'
    )


def starts(cloud):
    return len(cloud.counter.read_text().splitlines())


def test_a_vm_is_waited_for_and_the_command_runs_on_all_workers(replay):
    frames = ["ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING"]
    life = [{"request": state} for state in frames]
    life += [{"request": "ACTIVE", "vm": "CREATING"}, UP]
    cloud = replay(workers=3, lives=[life])
    code, out, err = cloud.run(job(), "--delete")
    assert code == 0, err
    for state in frames:
        assert f"the queued resource is {state}" in err
    assert "the VM is CREATING" in err
    assert "cost" not in err
    assert out.splitlines()[-1] == "done"
    assert starts(cloud) == 3
    assert cloud.verbs() == [
        "queue create",
        *("vm ssh", "vm scp", "vm ssh"),
        "queue delete",
    ]


def test_the_shipped_code_is_what_git_lists_and_runs_with_its_environment(replay):
    cloud = replay(workers=1, lives=[[UP]])
    code, out, err = cloud.run(
        'ls pintern/train.py launch/tpu_vm.py; ls -d .git; echo "$GIVEN $PINTERN_STOPPED_STATUS"',
        "--env=GIVEN=it's given",
    )
    assert code == 0, err
    assert out.splitlines()[:2] == ["launch/tpu_vm.py", "pintern/train.py"]
    assert f"it's given {STOPPED}" in out


@pytest.mark.parametrize(
    "end",
    [
        {"request": "ACTIVE", "vm": "PREEMPTED"},
        {"request": "SUSPENDED"},
        {"request": "ACTIVE"},  # the VM is gone
    ],
)
def test_a_vm_that_is_taken_away_is_made_anew_and_the_run_goes_on(replay, end):
    cloud = replay(lives=[[{"request": "ACCEPTED"}, UP, UP, {**UP, "lost_after": 1}, end], [UP]])
    code, out, err = cloud.run(job(lasting=1))
    assert code == 0, err
    assert starts(cloud) == 4
    assert cloud.verbs().count("queue create") == 2
    assert cloud.verbs().count("queue delete") == 1
    assert "done" in out


def test_a_worker_without_ssh_is_waited_for(replay):
    frames = [{**UP, "broken": [1]}] * 3 + [UP]
    cloud = replay(lives=[frames])
    code, _, err = cloud.run(job())
    assert code == 0, err
    assert "worker 1 can't be reached by ssh" in err
    assert "queue delete" not in cloud.verbs()
    assert starts(cloud) == 2


def test_a_worker_that_ssh_never_reaches_costs_the_vm(replay):
    cloud = replay(lives=[[{**UP, "broken": [0]}], [UP]])
    code, _, err = cloud.run(job())
    assert code == 0, err
    assert f"worker 0 can't be reached by ssh, {UNREACHABLE_LIMIT + 1} times; delete" in err
    assert cloud.verbs().count("queue create") == 2


def test_ssh_that_fails_while_starting_one_worker_is_tried_again(replay):
    # Installed after the first look; after the second one started on worker 0 alone.
    frames = [UP, {**UP, "broken": [1], "broken_for": "setsid"}, UP]
    cloud = replay(lives=[frames])
    code, out, err = cloud.run('echo x >>"${0#--workdir=}"; sleep 2; echo done')
    assert code == 0, err
    assert "start failed: ERROR" in err
    assert starts(cloud) == 2
    assert "done" in out


@pytest.mark.parametrize(
    "scenario",
    [
        {"create": [QUOTA], "lives": [[UP]]},
        {"lives": [[{"request": "ACCEPTED"}, {"request": "FAILED", "error": QUOTA}]]},
    ],
)
def test_a_quota_error_is_told_and_not_repeated(replay, scenario):
    cloud = replay(**scenario)
    code, _, err = cloud.run(job())
    assert code == 1
    assert "Quota limit" in err.splitlines()[-1]
    assert cloud.verbs() == ["queue create"]


def test_a_passing_error_of_the_cloud_is_tried_again_a_few_times(replay, tmp_path):
    cloud = replay(create=["UNAVAILABLE: 503", "UNAVAILABLE: 503"], lives=[[UP]])
    code, _, err = cloud.run(job())
    assert code == 0, err
    shutil.rmtree(cloud.folder)
    cloud = replay(create=["UNAVAILABLE: 503"] * 99, lives=[[UP]])
    code, _, err = cloud.run(job())
    assert code == 1
    assert f"UNAVAILABLE: 503 ({FAILURE_LIMIT + 1} times)" in err


# What gcloud itself wrote where nobody answered.
CRASHED = """gcloud crashed (ConnectionError): HTTPConnectionPool(host='127.0.0.1', port=9): \
Max retries exceeded with url: /v2/ (Caused by NewConnectionError('[Errno 111] Connection refused'))

If you would like to report this issue, please run the following command:
  gcloud feedback

To check gcloud for common problems, please run the following command:
  gcloud info --run-diagnostics
"""


def test_a_network_that_fails_for_a_while_is_waited_for(replay, tmp_path):
    cloud = replay(describe=["", CRASHED, CRASHED], lives=[[UP]])
    code, _, err = cloud.run(job())
    assert code == 0, err
    shutil.rmtree(cloud.folder)
    cloud = replay(describe=[CRASHED] * 99, lives=[[UP]])
    code, _, err = cloud.run(job())
    assert code == 2
    assert "ConnectionError" in err.splitlines()[-1]


def test_requests_that_fail_one_after_the_other_come_to_an_end(replay):
    failed = [{"request": "FAILED", "error": "no capacity in time"}]
    cloud = replay(lives=[failed] * 20)
    code, _, err = cloud.run(job())
    assert code == 1
    assert "queued resources failed in a row: no capacity in time" in err


def test_one_that_failed_in_an_earlier_launch_is_made_anew(replay):
    cloud = replay(exists=True, lives=[[{"request": "FAILED", "error": QUOTA}], [UP]])
    code, _, err = cloud.run(job())
    assert code == 0, err


def test_a_failing_worker_stops_the_others_and_its_log_is_shown(replay):
    cloud = replay(lives=[[UP]])
    code, _, err = cloud.run(
        'case "$HOME" in *worker-0) sleep 1; echo "the cause"; exit 9;; esac; exec sleep 600'
    )
    assert code == 9
    assert "worker 0 ended with exit status 9" in err
    assert "[worker 0] the cause" in err
    assert "the VM stays, and costs: gcloud compute tpus queued-resources delete vm" in err
    probes = list(cloud.folder.glob("worker-1/pintern-launch/*/status"))
    assert [path.read_text() for path in probes] == ["143\n"]


def test_a_second_launch_attaches_and_a_killed_one_leaves_the_run(replay):
    cloud = replay(lives=[[UP]])
    # Slow at its first start alone, on two workers, to be attached to.
    code = (
        'echo x >>"${0#--workdir=}"; n=$(wc -l <"${0#--workdir=}");'
        ' for i in 1 2 3 4 5 6 7 8; do echo "line $i"; [ "$n" -gt 2 ] || sleep 1; done'
    )
    first = cloud.start(code)
    assert first.stdout.readline() == "line 1\n"
    first.kill()
    first.communicate()
    status, out, err = cloud.run(code)
    assert status == 0, err
    assert "the command is running; follow" in err
    assert out.splitlines() == [f"line {i}" for i in range(1, 9)]  # from the beginning, once
    assert starts(cloud) == 2
    assert cloud.verbs().count("queue create") == 1
    # Once more it is started again, and resumed training would say that it is complete.
    assert cloud.run(code)[0] == 0
    assert starts(cloud) == 4


@pytest.mark.parametrize("changed", [["exec sleep 601"], ["exec sleep 600", "--env=SEED=2"]])
def test_a_run_with_another_command_is_not_attached_to(replay, changed):
    cloud = replay(lives=[[UP]])
    first = cloud.start("echo up; exec sleep 600")
    assert first.stdout.readline() == "up\n"
    code, _, err = cloud.run(f"echo up; {changed[0]}", *changed[1:])
    first.kill()
    first.communicate()
    assert code == 1
    assert "is there already, with another command or other --env" in err
    assert cloud.verbs().count("vm scp") == 1


def test_a_vm_that_runs_something_else_is_left_alone(replay, tmp_path):
    cloud = replay(lives=[[UP]])
    first = cloud.start("echo up; exec sleep 600")
    assert first.stdout.readline() == "up\n"
    cloud.counter = tmp_path / "another"
    code, _, err = cloud.run(job())
    first.kill()
    first.communicate()
    assert code == 1
    assert "the VM is busy with another run (pintern-starts-" in err


def test_a_vm_that_could_not_be_deleted_is_told_and_no_success(replay):
    cloud = replay(lives=[[UP]], delete="PERMISSION_DENIED: tpu.queuedResources.delete")
    code, out, err = cloud.run(job(), "--delete")
    assert out.splitlines()[-1] == "done"
    assert code == 1
    assert "finish failed: ERROR: (gcloud.compute.tpus) PERMISSION_DENIED" in err
    assert "gcloud compute tpus queued-resources delete vm --force" in err.splitlines()[-1]


def test_a_setup_that_ends_in_a_comment_runs(replay):
    cloud = replay(workers=1, lives=[[UP]])
    code, out, err = cloud.run("cat made", "--setup=echo made >made  # nothing else")
    assert code == 0, err
    assert out == "made\n"
    assert err.splitlines()[-1].startswith("launch: the VM stays, and costs: gcloud compute tpus")


def test_an_existing_vm_is_never_created_or_deleted(replay):
    cloud = replay(existing=True, exists=True, lives=[[{"vm": "STARTING"}, {"vm": "READY"}]])
    code, _, err = cloud.run(job(), "--existing")
    assert code == 0
    assert "cost" not in err
    assert {verb.split()[0] for verb in cloud.verbs()} == {"vm"}


def test_an_existing_vm_that_is_preempted_is_told(replay):
    cloud = replay(existing=True, exists=True, lives=[[{"vm": "PREEMPTED"}]])
    code, _, err = cloud.run(job(), "--existing")
    assert code == 1
    assert "the VM is PREEMPTED" in err
    assert cloud.verbs() == []


def test_a_vm_of_that_name_made_otherwise_is_not_touched(replay):
    cloud = replay(exists=True, lives=[[{"vm": "READY"}]])
    code, _, err = cloud.run(job())
    assert code == 1
    assert "add --existing" in err
    assert cloud.verbs() == []


def test_the_watcher_runs_on_worker_0_and_finishes_after_training(replay, tmp_path):
    cloud = replay(lives=[[UP]])
    # What `python -m pintern.evaluate --watch` is told, and by which signal it ends.
    programs = cloud.folder / "bin"
    python = programs / "python"
    python.write_text(
        '#!/bin/bash\ntrap "echo told; exit 0" USR1\necho "$JAX_PLATFORMS $*"\n'
        "for i in $(seq 600); do sleep 0.1; done\n"
    )
    python.chmod(0o755)
    code, out, err = cloud.run("sleep 2; echo done", "--with_eval")
    assert code == 0, err
    workdir = f"--workdir={cloud.counter}"
    assert out.splitlines() == ["done", f"cpu -m pintern.evaluate --watch {workdir}", "told"]
    assert not list(cloud.folder.glob("worker-1/pintern-launch/*/eval.log"))


def test_dry_run_prints_every_command_and_calls_nothing(replay):
    cloud = replay(lives=[[UP]])
    code, out, err = cloud.run("true", "--dry_run", "--delete")
    assert code == 0, err
    assert not (cloud.folder / "calls.jsonl").exists()
    for said in ("queued-resources create vm", "tpu-vm scp", "setsid nohup", "resources delete vm"):
        assert said in out


def test_without_git_the_launcher_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="`git` is not on PATH"):
        ship.archive(tiny.REPOSITORY)


def gcloud_lines(out):
    """The printed commands; a script inside one has several lines."""
    lines = []
    for line in out.splitlines():
        if line.startswith(("gcloud ", "#")):
            lines.append(line)
        else:
            lines[-1] += "\n" + line
    return [line for line in lines if line.startswith("gcloud ")]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcloud") is None, reason="the Google Cloud SDK is not installed")
def test_the_real_gcloud_knows_every_command_and_flag(tmp_path):
    flags = ["--name=vm", "--zone=us-west4-a", "--type=v5litepod-16", "--spot", "--project=p"]
    flags += ["--with_eval", "--delete", "--dry_run"]
    command = ["python", "-m", "pintern.train", "--workdir=gs://bucket/run"]
    code, out, err = tiny.run("-m", "launch.tpu_vm", *flags, "--", *command)
    assert code == 0, err
    lines = gcloud_lines(out)
    assert len(lines) == 8
    lines += [
        "gcloud compute tpus queued-resources describe vm --format=json --zone=z",
        "gcloud compute tpus tpu-vm describe vm --format=json --zone=z",
        "gcloud compute tpus tpu-vm ssh vm --worker=all --command=x --output-directory=/d --zone=z",
    ]
    environment = os.environ | {
        "CLOUDSDK_CONFIG": str(tmp_path),
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
    }
    for line in [*lines, "gcloud compute tpus tpu-vm ssh vm --no-such-flag=1"]:
        # Its parser knows nothing of quoted scripts.
        line = re.sub(r"'--command=.*'", "--command=x", line, flags=re.DOTALL)
        done = subprocess.run(
            ["gcloud", "meta", "lint-gcloud-commands", f"--command-string={line}"],
            env=environment,
            capture_output=True,
            text=True,
        )
        (said,) = json.loads(done.stdout)
        assert said["success"] == ("no-such-flag" not in line), said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--name=vm", "--zone=z"], "--type is not set"),
        (["--name=VM", "--zone=z", "--type=v4-8"], "--name=VM"),
        (["--name=vm", "--zone=z", "--type=v4-8", "--spot"], "goes with a spot VM"),
        (["--name=vm", "--zone=z", "--type=v9-8"], "--type=v9-8: expected one of v5litepod-N"),
        (["--name=vm", "--zone=z", "--type=v4-x"], "--type=v4-x: expected one of v5litepod-N"),
        (["--name=vm", "--zone=z", "--type=v4-8", "--env=A"], "--env=A: expected NAME=value"),
        (["--name=vm", "--zone=z", "--existing", "--delete"], "--delete with --existing"),
        (["--zone=z", "--type=v4-8"], "name"),
    ],
)
def test_mistakes_are_told_in_one_line(flags, message):
    command = ["python", "-m", "pintern.train", "--workdir=runs/x"]
    code, _, err = tiny.run("-m", "launch.tpu_vm", "--dry_run", *flags, "--", *command)
    assert code == 2
    assert err.startswith("error:")
    assert message in err
