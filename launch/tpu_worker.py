"""The shell commands that run on the workers of a TPU VM. Each may be given any number of times.

A run has a folder on each worker:

    ~/pintern-launch/RUN/  code/  venv/  installed-HASH  lock  started  pid  log  status ...

`lock` is held (flock) by the run's processes, so that "running" is true exactly while they are,
whatever becomes of the ssh session, the launcher or the machine. `started` says which command.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from launch.common import STOPPED, digest, exports
from pintern.distributed import STOPPED_STATUS

# Ubuntu's own Python is older than the package needs.
SETUP = (
    "python3 -m pip install --quiet --user uv && "
    "python3 -m uv venv --quiet --allow-existing --python=3.12 ../venv && "
    "python3 -m uv pip install --quiet --python=../venv/bin/python --editable '.[tpu]'"
)
_HEAD = 'base="$HOME/pintern-launch"; run="$base/{run}"; mkdir -p "$run/code"; cd "$run"\n'
_FREE = 'flock --nonblock "{lock}" true'


def archive_name(fingerprint: str) -> str:
    """Name, in the home folder, of the shipped code."""
    return f"pintern-launch-{fingerprint}.tar.gz"


def probe(
    run: str, fingerprint: str, command: Sequence[str], environment: Mapping[str, str]
) -> str:
    """Prints the state of a run on a worker (`launch.tpu_states.Seen.workers`)."""
    return (
        _HEAD.format(run=run)
        + f"""\
for other in "$base"/*/lock; do
  [ -e "$other" ] && [ "$other" != "$run/lock" ] || continue
  {_FREE.format(lock="$other")} || {{ echo "busy $(basename "$(dirname "$other")")"; exit; }}
done
if [ -e lock ] && ! {_FREE.format(lock="lock")}; then
  [ "$(cat started)" = {_told(command, environment)} ] && echo running || echo differs
elif [ ! -e installed-{fingerprint} ]; then echo absent
elif [ -e status ]; then echo "exited $(cat status)"
elif [ -e pid ]; then echo "exited 137"
else echo ready
fi
"""
    )


def _told(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """A short name for what runs; the code may change while it does."""
    return digest(repr((list(command), dict(environment))))


def install(run: str, fingerprint: str, setup: str) -> str:
    """Unpacks the shipped code and makes its environment."""
    archive = f'"$HOME/{archive_name(fingerprint)}"'
    return (
        "set -e\n"
        + _HEAD.format(run=run)
        + f"""\
rm -rf code && mkdir code && tar -xzf {archive} -C code
(cd code && {setup}
)
rm -f installed-* {archive}
touch installed-{fingerprint}
"""
    )


def start(run: str, command: Sequence[str], environment: Mapping[str, str]) -> str:
    """Starts the command, unless it is running; it outlives the ssh session."""
    inner = f"""\
trap : TERM INT
{shlex.join(command)} &
child=$!
while :; do wait "$child"; code=$?; kill -0 "$child" 2>/dev/null || break; done
echo "$code" >../status.tmp && mv ../status.tmp ../status
"""
    given = {"PYTHONUNBUFFERED": "1", STOPPED_STATUS: str(STOPPED), **environment}
    return (
        _HEAD.format(run=run)
        + f"""\
exec 9>lock
flock --nonblock 9 || exit 0
rm -f status
echo {_told(command, environment)} >started
{exports(given)}export PATH="$run/venv/bin:$PATH"
cd code
setsid nohup bash -c {shlex.quote(inner)} >../log 2>&1 </dev/null &
echo $! >../pid
"""
    )


def start_watcher(run: str, command: Sequence[str], environment: Mapping[str, str]) -> str:
    """Starts the watcher on the CPU of a worker, unless it is running."""
    given = {"PYTHONUNBUFFERED": "1", "JAX_PLATFORMS": "cpu", **environment}
    return (
        _HEAD.format(run=run)
        + f"""\
exec 9>eval.lock
flock --nonblock 9 || exit 0
{exports(given)}export PATH="$run/venv/bin:$PATH"
cd code
setsid nohup {shlex.join(command)} >../eval.log 2>&1 </dev/null &
echo $! >../eval.pid
"""
    )


def follow(run: str, seen: int, *, name: str = "log", process: str = "pid") -> str:
    """Prints a log from line `seen` on, until its process has ended."""
    return (
        _HEAD.format(run=run)
        + f'tail --lines=+{seen + 1} --pid="$(cat {process})" --sleep-interval=1 --follow {name}\n'
    )


def finish_watcher(run: str) -> str:
    """Lets the watcher score what is left, and prints what it said."""
    signal = 'kill -USR1 "$(cat eval.pid)" 2>/dev/null; '
    rest = follow(run, 0, name="eval.log", process="eval.pid")
    return _HEAD.format(run=run) + signal + rest


def stop(run: str, seconds: int = 30) -> str:
    """Asks the command and the watcher to end, and kills what hasn't after some seconds."""
    return (
        _HEAD.format(run=run)
        + f"""\
for name in pid eval.pid; do
  [ -e "$name" ] && kill -TERM -- "-$(cat "$name")" 2>/dev/null
done
for _ in $(seq {seconds}); do {_FREE.format(lock="lock")} && exit 0; sleep 1; done
kill -KILL -- "-$(cat pid)"
"""
    )


def tail(run: str) -> str:
    """Prints the end of the log."""
    return _HEAD.format(run=run) + "tail --lines=30 log 2>/dev/null\n"
