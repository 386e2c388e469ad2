"""Runs a command as several processes on this machine.

    python -m launch.local --processes=2 -- python -m pintern.train --workdir=runs/two ...

Of several processes every line of output begins with the number of the one it comes from, and the
watcher's lines with [eval]. When one process fails, the others are stopped within a minute and a
message says which and why; its exit status is handed on. SIGTERM and Ctrl-C are handed to all,
which save and end. A second launch of the same run folder is refused while the first one lasts.
GPUs, where there are any, are shared out evenly.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from absl import flags

from launch import common
from launch.processes import Child, supervise
from pintern.distributed import ADDRESS, NUM_PROCESSES, PROCESS_ID
from pintern.errors import UserError


def define(values: flags.FlagValues) -> None:
    """The launcher's flags."""
    common.define_common(values)
    flags.DEFINE_integer("processes", 1, "How many.", lower_bound=1, flag_values=values)
    flags.DEFINE_float(
        "grace",
        30.0,
        "Seconds between asking the others to stop and killing them, once one has failed.",
        lower_bound=0.0,
        upper_bound=50.0,
        flag_values=values,
    )


def main(values: flags.FlagValues, command: list[str]) -> int:
    """Runs the command; the exit status."""
    plan = children(command, values.processes, port=_free_port(), gpus=visible_gpus(os.environ))
    if values.with_eval:
        watch = common.watch_command(command)
        plan.append(Child("eval", watch, {"JAX_PLATFORMS": "cpu"}, watcher=True))
    if values.dry_run:
        for child in plan:
            given = " ".join(f"{k}={shlex.quote(v)}" for k, v in child.environment.items())
            print(f"{given} {shlex.join(child.command)}".strip())
        return 0
    with _only_launch_of(command):
        return supervise(plan, grace=values.grace)


def children(
    command: Sequence[str], processes: int, *, port: int, gpus: Sequence[str] = ()
) -> list[Child]:
    """What to start: one process as it stands, several with the variables that connect them.

    Args:
      command: the command of each.
      processes: how many.
      port: a free one, where process 0 waits for the others.
      gpus: the GPUs to share out.
    """
    if processes == 1:
        return [Child("", list(command), {})]
    if gpus and len(gpus) % processes:
        raise UserError(
            f"--processes={processes} can't share {len(gpus)} GPUs evenly.",
            "Choose a divisor, or set CUDA_VISIBLE_DEVICES (JAX_PLATFORMS=cpu for none).",
        )
    share = len(gpus) // processes
    plan = []
    for i in range(processes):
        environment = {
            ADDRESS: f"127.0.0.1:{port}",
            # JAX would listen on every interface.
            "JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}",
            NUM_PROCESSES: str(processes),
            PROCESS_ID: str(i),
        }
        if share:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[i * share : (i + 1) * share])
        plan.append(Child(str(i), list(command), environment))
    return plan


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """Ids of the NVIDIA GPUs that JAX would take."""
    if (environment.get("JAX_PLATFORMS") or "cuda") not in ("cuda", "gpu", "cuda,cpu", "gpu,cpu"):
        return []
    if "CUDA_VISIBLE_DEVICES" in environment:
        return [i for i in environment["CUDA_VISIBLE_DEVICES"].split(",") if i not in ("", "-1")]
    return [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def _only_launch_of(command: Sequence[str]) -> Iterator[None]:
    """Holds a lock on the run folder; the system lets go of it however the launcher ends."""
    name = common.run_name(command, absolute=True)
    path = Path(tempfile.gettempdir()) / f"{name}-{os.getuid()}.lock"
    if common.workdir_of(command) is None:  # nothing that two launches could spoil
        yield
        return
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{common.workdir_of(command)} is being run by another launch on this machine "
                f"(process {file.read().strip()}).",
                "Wait for it, stop it, or use another --workdir.",
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


if __name__ == "__main__":
    common.run("launch.local", __doc__, define, main)
