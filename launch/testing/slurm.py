"""A real Slurm of one node on this machine: munge, controller and node daemon, in a folder.

    python -m launch.testing.slurm --dir=DIR -- COMMAND        start it, run COMMAND in it, stop it

It needs Debian's `slurm-wlm` and `munge` (or the like) and nothing set up: configuration, key and
sockets lie in the folder, ports are free ones, and the system's own Slurm is left alone. Accounting
is off. What has been requeued starts again after seconds, where a production site makes it wait.
"""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from absl import flags

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/sbin"])


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A started Slurm.

    Attributes:
      environment: what its clients need.
      directory: logs and configuration.
    """

    environment: dict[str, str]
    directory: Path

    def run(self, *command: str) -> str:
        """Output of a client, which has to succeed."""
        done = subprocess.run(
            command, env=os.environ | self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}{self.logs()}")
        return done.stdout

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        return "\n".join(
            f"== {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-15:])
            for path in sorted(self.directory.glob("*.log"))
        )


def missing_programs() -> list[str]:
    """Programs of Slurm and munge that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]


@contextlib.contextmanager
def one_node(directory: Path, *, cpus: int = 2) -> Iterator[Cluster]:
    """Starts a Slurm of one node named after this host, and stops it with all its jobs.

    Args:
      directory: an empty folder of one's own, with a path short enough for a socket.
      cpus: how many the node says it has, whatever the machine has.
    """
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o755)
    for name in ("state", "spool", "munge"):
        (directory / name).mkdir(exist_ok=True)
    key = directory / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    conf = directory / "slurm.conf"
    conf.write_text(_configuration(directory, cpus))
    cluster = Cluster({"SLURM_CONF": str(conf), "PATH": _PATH}, directory)
    munge = directory / "munge"
    daemons = [
        [
            *("munged", "--foreground", "--force", f"--socket={munge / 'socket'}"),
            *(f"--key-file={key}", f"--log-file={munge / 'log'}", f"--pid-file={munge / 'pid'}"),
            *(f"--seed-file={munge / 'seed'}", "--num-threads=2"),
        ],
        ["slurmctld", "-D", "-f", str(conf)],
        ["slurmd", "-D", "-f", str(conf), "-N", _host()],
    ]
    started = []
    try:
        for daemon in daemons:
            with (directory / f"{daemon[0]}.log").open("w") as log:
                process = subprocess.Popen(
                    daemon, env=os.environ | cluster.environment, stdout=log, stderr=log
                )
            started.append(process)
            if daemon[0] == "munged":
                _wait(lambda: (munge / "socket").exists(), process, cluster)
        _wait(lambda: _is_idle(cluster), started[-1], cluster)
        yield cluster
    finally:
        with contextlib.suppress(RuntimeError):
            cluster.run("scancel", "--full", "--signal=KILL", f"--user={getpass.getuser()}")
            cluster.run("scancel", f"--user={getpass.getuser()}")
            _wait(lambda: not cluster.run("squeue", "--noheader"), started[-1], cluster, 20)
        for process in reversed(started):
            process.terminate()
        for process in reversed(started):
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _configuration(directory: Path, cpus: int) -> str:
    user, host = getpass.getuser(), _host()
    controller, node = _free_ports(2)
    return f"""\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={directory}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0
KillWait=30
MinJobAge=300
ReturnToService=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def _host() -> str:
    return socket.gethostname().partition(".")[0]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _is_idle(cluster: Cluster) -> bool:
    try:
        return cluster.run("sinfo", "--noheader", "--format=%t").strip() == "idle"
    except RuntimeError:
        return False


def _wait(true, process: subprocess.Popen, cluster: Cluster, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"Slurm didn't start or stop here.\n{cluster.logs()}")
        time.sleep(0.1)


def main(values: flags.FlagValues, command: list[str]) -> int:
    """Runs a command inside a Slurm of one node."""
    absent = missing_programs()
    if absent:
        print(f"error: not installed: {', '.join(absent)}.", file=sys.stderr)
        return 2
    with one_node(Path(values.dir).resolve()) as cluster:
        return subprocess.call(command, env=os.environ | cluster.environment)


def define(values: flags.FlagValues) -> None:
    """The flags."""
    flags.DEFINE_string("dir", None, "Its folder.", required=True, flag_values=values)


if __name__ == "__main__":
    from launch.common import run

    run("launch.testing.slurm", __doc__, define, main)
