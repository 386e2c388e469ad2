"""Runs a command as a Slurm job, one process per GPU, and follows its output.

    python -m launch.slurm --nodes=2 --gpus_per_node=8 --partition=long --time=12:00:00 -- \\
        python -m pintern.train --workdir=runs/large ...

The job saves and is queued again when its time runs out or it is preempted, and goes on from its
checkpoint. Run the same command again to attach to the job, queued or running: there is never a
second one of a run. Ctrl-C leaves the job alone; `scancel` ends it for good. The folder has to be
one that all nodes see.
"""

from __future__ import annotations

import math
import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from launch import common
from pintern.errors import UserError

_POLL = 2.0  # seconds; the controller of a large site has enough to do
# minutes, minutes:seconds, hours:minutes:seconds, and days-hours with or without the smaller ones.
_TIME = re.compile(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}|UNLIMITED|INFINITE", re.ASCII)
_DONE = (
    "COMPLETED FAILED CANCELLED TIMEOUT NODE_FAIL OUT_OF_MEMORY BOOT_FAIL DEADLINE "
    "PREEMPTED"  # where the site cancels what it preempts; else it is queued again at once
).split()


def define(values: flags.FlagValues) -> None:
    """The launcher's flags."""
    common.define_common(values)

    def text(name: str, default: str | None, doc: str) -> None:
        flags.DEFINE_string(name, default, doc, flag_values=values)

    def number(name: str, default: int | None, least: int, doc: str) -> None:
        flags.DEFINE_integer(name, default, doc, lower_bound=least, flag_values=values)

    number("nodes", 1, 1, "Nodes.")
    number("gpus_per_node", 0, 0, "GPUs on each; 0 trains on CPUs.")
    number("tasks_per_node", None, 1, "Processes on each; by default one per GPU, and one without.")
    number("grace", 120, 10, "Seconds before the end of the time limit at which the job saves.")
    text("partition", None, "Partition; the site's default without.")
    text("time", None, "Time limit of one stretch, as sbatch takes it.")
    flags.register_validator(
        "time",
        lambda given: given is None or _TIME.fullmatch(given),
        "Give hours:minutes:seconds or days-hours, such as 12:00:00 or 2-12.",
        flag_values=values,
    )
    text("name", None, "Name of the job; by default made of the run's folder.")
    text("log_dir", "runs/launch", "Folder of script and log.")
    flags.DEFINE_multi_string(
        "sbatch", [], "Another option of sbatch, such as --sbatch=--account=me.", flag_values=values
    )
    flags.DEFINE_boolean("follow", True, "Follow the job to its end.", flag_values=values)


def main(values: flags.FlagValues, command: list[str]) -> int:
    """Submits the job or attaches to it; the exit status."""
    name = common.check_name(values.name or common.run_name(command, absolute=True))
    folder = Path(values.log_dir).absolute()
    log, file = folder / f"{name}.log", folder / f"{name}.sbatch"
    script = batch_script(values, command, name, log)
    # What runs is part of the job's record, so that a second launch can tell it from another.
    fingerprint = common.digest(script)
    submit = ["sbatch", "--parsable", f"--comment={fingerprint}", str(file)]
    if values.dry_run:
        print(f"# {file}\n{script}\n# command\n{shlex.join(submit)}")
        return 0
    job, began = find_job(name, fingerprint), 0
    if job is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file.write_text(script, encoding="utf-8")
        except OSError as error:
            raise UserError(f"--log_dir={folder} can't be written: {error.strerror}.") from error
        began = log.stat().st_size if log.exists() else 0
        done = common.call(submit, program_of="Slurm's client tools")
        if done.returncode:
            raise UserError(f"sbatch refused {file}: {common.last_line(done.stderr)}.")
        job = done.stdout.strip().partition(";")[0]
        print(f"Submitted job {job} ({name}); output in {log}.", flush=True)
    else:
        print(f"Job {job} ({name}) is there already; output in {log}.", flush=True)
    return follow(job, log, began) if values.follow else 0


def batch_script(values: flags.FlagValues, command: Sequence[str], name: str, log: Path) -> str:
    """The sbatch script: options, the job step, and what to do when a signal comes."""
    tasks = values.tasks_per_node or values.gpus_per_node or 1
    if values.gpus_per_node and tasks not in (1, values.gpus_per_node):
        raise UserError(
            f"--tasks_per_node={tasks} with --gpus_per_node={values.gpus_per_node}: expected "
            "one process per GPU, or one for all of a node."
        )
    if (seconds := _seconds(values.time)) <= values.grace:
        raise UserError(
            f"--time={values.time} is {seconds} seconds, and the job saves --grace={values.grace} "
            "before its end: it would be told to as soon as it starts, queued again, and so on.",
            "Give more time, or less grace.",
        )
    options = {
        "job-name": name,
        "nodes": values.nodes,
        "ntasks-per-node": tasks,
        "gpus-per-node": values.gpus_per_node or None,
        "partition": values.partition,
        "time": values.time,
        "chdir": Path.cwd(),
        "output": str(log).replace("%", "%%"),
        "open-mode": "append",
        "requeue": "",
        # However often it is submitted, one job of this name runs at a time.
        "dependency": "singleton",
        "signal": f"B:USR1@{values.grace}",
    }
    lines = [f"--{k}={v}" if v != "" else f"--{k}" for k, v in options.items() if v is not None]
    environment = {"PYTHONUNBUFFERED": "1"}
    if tasks == 1 and values.gpus_per_node > 1:
        # Inside Slurm JAX gives each process one GPU, unless told.
        environment["JAX_LOCAL_DEVICE_IDS"] = ",".join(map(str, range(values.gpus_per_node)))
    # How many processors a task has srun takes from its own options alone (Slurm 22.05 and later).
    again = [option for option in values.sbatch if re.match("--cpus-per-task=|-c", option)]
    body = _BODY.format(
        exports=common.exports(environment),
        watcher=_watcher(values, command),
        command=shlex.join([*again, *command]),
    )
    options_text = "".join(f"#SBATCH {_quoted(line)}\n" for line in [*lines, *values.sbatch])
    return f"#!/bin/bash\n{options_text}\n{body}"


def _seconds(limit: str | None) -> float:
    """A time limit as sbatch reads it, to which 0 is none."""
    if limit is None or not limit[0].isdigit():
        return math.inf
    days, dash, rest = limit.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if not dash and len(parts) < 3:  # minutes come first
        parts = [0, *parts]
    hours, minutes, seconds = [*parts, 0, 0][:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds or math.inf


def _quoted(option: str) -> str:
    return option if shlex.quote(option) == option else f'"{option}"'


def _watcher(values: flags.FlagValues, command: Sequence[str]) -> str:
    if not values.with_eval:
        return "watcher=\n"
    return f"JAX_PLATFORMS=cpu {shlex.join(common.watch_command(command))} &\nwatcher=$!\n"


_BODY = """\
{exports}
# The time is nearly over (USR1), or the job is being preempted or cancelled (TERM).
told=
save() {{
  told=$1
  echo "launch: $1; the job saves (restart ${{SLURM_RESTART_COUNT:-0}})"
  scancel --signal=TERM "$SLURM_JOB_ID"  # the steps, not this script
}}
trap 'save "the time limit is near"' USR1
trap 'save "Slurm asks the job to end"' TERM

{watcher}
srun --kill-on-bad-exit=1 {command} &
training=$!
while kill -0 "$training" 2>/dev/null; do
  wait "$training"  # which a signal ends, too
done
wait "$training"  # it has ended: whatever ended the wait, this is the step's own status
status=$?

if [ -n "$watcher" ]; then
  if [ -n "$told" ]; then kill -TERM "$watcher"; else kill -USR1 "$watcher"; fi
  wait "$watcher"
fi 2>/dev/null
if [ -n "$told" ] && [ "$status" -eq 0 ]; then
  # Cancelled, or requeued by Slurm itself, the job is no longer running: leave it so.
  if [ "$(squeue --noheader --job="$SLURM_JOB_ID" --format=%T)" = RUNNING ]; then
    echo "launch: saved; the job is queued again"
    scontrol requeue "$SLURM_JOB_ID"
    sleep 60  # until Slurm takes it away
  fi
fi
exit "$status"
"""


def find_job(name: str, fingerprint: str) -> str | None:
    """The id of this user's job of a name that has not ended, if there is one.

    Raises:
      UserError: it runs another command.
    """
    done = common.call(
        ["squeue", "--noheader", "--me", f"--name={name}", "--format=%A %T %k"],
        program_of="Slurm's client tools",
    )
    if done.returncode:
        raise UserError(f"squeue failed: {common.last_line(done.stderr)}.")
    # A comment of somebody else's may have spaces.
    jobs = [line.split(maxsplit=2) for line in done.stdout.splitlines() if line.strip()]
    if not jobs:
        return None
    job, _, comment = min(jobs, key=lambda fields: (fields[1] != "RUNNING", int(fields[0])))
    if comment != fingerprint:
        raise UserError(
            f"Job {job} ({name}) is there already, with another command or other options.",
            f"End it (scancel {job}), or give this one another --name and --workdir.",
        )
    return job


def follow(job: str, log: Path, began: int) -> int:
    """Prints a job's log from byte `began` until the job has ended; its exit status."""
    seen, state = began, ""
    try:
        while True:
            fields = _job_fields(job)
            if log.exists():
                with log.open("rb") as file:
                    file.seek(seen)
                    text = file.read()
                seen += len(text)
                sys.stdout.write(text.decode(errors="replace"))
            now = fields["JobState"] + f" ({fields['Reason']})" * (fields["Reason"] != "None")
            if now != state:
                print(f"launch: job {job} is {now}", file=sys.stderr)
            sys.stdout.flush()
            state = now
            if fields["JobState"] in _DONE:
                status, _, number = fields["ExitCode"].partition(":")
                fine = fields["JobState"] == "COMPLETED"
                return int(status) or (128 + int(number) if number != "0" else int(not fine))
            time.sleep(_POLL)
    except KeyboardInterrupt:
        print(f"\nJob {job} goes on. Attach: the same command. End it: scancel {job}")
        return 0


def _job_fields(job: str) -> dict[str, str]:
    """What Slurm knows of a job; it forgets one some minutes after its end."""
    for _ in range(5):
        done = common.call(
            ["scontrol", "show", "job", job, "--oneliner"], program_of="Slurm's client tools"
        )
        if not done.returncode:
            return dict(part.split("=", 1) for part in done.stdout.split() if "=" in part)
        if "Invalid job id" in done.stderr:
            break
        time.sleep(_POLL)  # a controller that is busy or restarts
    raise UserError(
        f"scontrol show job {job}: {common.last_line(done.stderr)}.",
        "The job may have ended; its log tells.",
    )


if __name__ == "__main__":
    common.run("launch.slurm", __doc__, define, main)
