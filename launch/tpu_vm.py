"""Runs a command on every worker of a Cloud TPU VM, made for it or there before.

    python -m launch.tpu_vm --name=large --type=v5litepod-64 --zone=us-west4-a --spot -- \\
        python -m pintern.train --workdir=gs://bucket/runs/large ...

A queued resource is requested and waited for; code and environment go to all workers, the command
runs on all of them, and its output is followed. When the VM is preempted it is made anew and the
run goes on from its checkpoint. The command outlives this launcher: run the same line again to
attach. `--existing` uses a VM of that name and never creates or deletes one.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import flags

from launch import common, tpu_worker
from launch.tpu_commands import Commands
from launch.tpu_states import Action, Do, History, Seen, decide
from pintern.errors import UserError

_SDK = "the Google Cloud SDK"
# The cloud's own trouble, or this machine's network.
_PASSING = re.compile(
    r"UNAVAILABLE|DEADLINE|INTERNAL|timed out|50[0-9]|ConnectionError|Max retries exceeded|"
    r"name resolution|Connection (reset|refused|aborted)"
)


def define(values: flags.FlagValues) -> None:
    """The launcher's flags."""
    common.define_common(values)

    def text(name: str, default: str | None, doc: str, required: bool = False) -> None:
        flags.DEFINE_string(name, default, doc, required=required, flag_values=values)

    def switch(name: str, doc: str) -> None:
        flags.DEFINE_boolean(name, False, doc, flag_values=values)

    text("name", None, "Name of the queued resource and of its VM.", required=True)
    text("type", None, "Accelerator type, such as v5litepod-64; needed unless --existing.")
    text("zone", None, "Zone.", required=True)
    text("project", None, "Project; gcloud's own without.")
    text("runtime_version", None, "Image of the VM; by default the one for its generation.")
    text("setup", tpu_worker.SETUP, "Shell line that makes the environment, run in the code.")
    switch("spot", "Ask for a spot VM: cheaper, and preempted at any time.")
    switch("existing", "Use a VM that is there; never create or delete it.")
    switch("delete", "Delete the VM when the command has ended well.")
    flags.DEFINE_multi_string(
        "env", [], "NAME=value for the command (seen by who lists processes).", flag_values=values
    )
    flags.DEFINE_float("poll", 20.0, "Seconds between looks.", lower_bound=0, flag_values=values)


def main(values: flags.FlagValues, command: list[str]) -> int:
    """Brings the command to its end; the exit status."""
    commands = Commands.from_flags(values, command)
    if values.dry_run:
        print("\n".join(commands.plan()))
        return 0
    try:
        return Launch(commands, poll=values.poll).run(History(existing=values.existing))
    except KeyboardInterrupt:
        print(f"\nThe run goes on. Attach: the same command. End it: {commands.how_to_end()}")
        return 0


class Launch:
    """The loop: look, decide, act.

    Args:
      commands: the run's.
      poll: seconds between looks.
    """

    def __init__(self, commands: Commands, *, poll: float):
        self._commands, self._poll = commands, poll
        self._printed = 0  # lines of worker 0's log

    def run(self, history: History) -> int:
        """Looks, decides and acts until the command has ended."""
        trouble, told = "", None
        while True:
            seen = self.look(trouble)
            action, history = decide(seen, history)
            if (action.do, action.why) != told:
                said = f"launch: {action.why}" + f"; {action.do.value}" * (action.do is not Do.WAIT)
                print(said, file=sys.stderr, flush=True)
            told, trouble = (action.do, action.why), ""
            if action.do is Do.FAIL:
                self._show_failure(seen)
                if seen.request is not None and seen.vm is not None:
                    self._tell_that_it_stays("stays, and costs")
                return action.status
            if action.do is Do.WAIT:
                time.sleep(self._poll)
                continue
            if action.do is Do.FINISH:
                self._follow()  # what it said since the last look
            trouble = self.act(action)
            if trouble:
                print(f"launch: {action.do.value} failed: {trouble}", file=sys.stderr, flush=True)
            if action.do is Do.FINISH:
                return self._finished(trouble)
            if trouble:
                time.sleep(self._poll)

    def look(self, trouble: str = "") -> Seen:
        """What there is now; `trouble` is what the last action failed with."""
        request = None
        if not self._commands.values.existing:
            found = self._describe("queued-resources")
            if found is not None:
                request = found.get("state", {}).get("state", "STATE_UNSPECIFIED")
                if request == "FAILED":
                    error = found["state"].get("failedData", {}).get("error", {})
                    trouble = error.get("message", trouble)
        vm = self._describe("tpu-vm")
        if vm is None:
            return Seen(request, None, (), trouble)
        workers: tuple[str, ...] = ()
        # A VM that is neither this launcher's nor given to it is not even logged in to.
        mine = request == "ACTIVE" or self._commands.values.existing
        if vm.get("state") == "READY" and mine:
            workers = self._probe(len(vm.get("networkEndpoints", ())) or 1)
        return Seen(request, vm.get("state", "UNKNOWN"), workers, trouble)

    def _describe(self, kind: str) -> dict | None:
        command = self._commands.gcloud(
            kind, "describe", self._commands.values.name, "--format=json"
        )
        for attempt in range(4):
            done = common.call(command, program_of=_SDK)
            if not done.returncode:
                return json.loads(done.stdout)
            if re.search("NOT_FOUND|was not found|does not exist", done.stderr):
                return None
            if not _PASSING.search(done.stderr):
                break
            time.sleep(self._poll * attempt)
        raise UserError(f"{shlex.join(command)} failed: {common.last_line(done.stderr)}")

    def _probe(self, workers: int) -> tuple[str, ...]:
        with tempfile.TemporaryDirectory() as folder:
            made = self._commands
            script = tpu_worker.probe(made.run_id, made.fingerprint, made.command, made.environment)
            # A file for each worker, so that it is known who said what, and who said nothing.
            command = self._commands.ssh(script, "all", f"--output-directory={folder}")
            common.call(command, program_of=_SDK)
            files = [Path(folder) / f"{i}.log" for i in range(workers)]
            states = [file.read_text().strip() if file.exists() else "" for file in files]
        known = re.compile(r"absent|ready|running|differs|exited \d+|busy \S+")
        lines = [state.splitlines()[-1] if state else "" for state in states]
        return tuple(line if known.fullmatch(line) else "unreachable" for line in lines)

    def act(self, action: Action) -> str:
        """Does it; what went wrong, or nothing."""
        if action.do is Do.FOLLOW:
            self._follow()
            return ""
        with tempfile.NamedTemporaryFile(suffix=".tar.gz") as file:
            if action.do is Do.INSTALL:
                file.write(self._commands.archive)
                file.flush()
            trouble = ""
            for step in self._commands.steps(action.do, archive_file=file.name):
                done = common.call(step, program_of=_SDK)
                if done.returncode:
                    trouble = common.last_line(done.stderr or done.stdout)
                if action.do is Do.FINISH:  # a watcher that can't be reached keeps no VM
                    print(done.stdout, end="", flush=True)
                elif trouble:
                    return trouble
        if action.do is Do.START:
            self._printed = 0
        return trouble

    def _finished(self, trouble: str) -> int:
        """The exit status of a command that ended well."""
        if trouble or not self._commands.values.delete:
            deleted = self._commands.values.delete
            how = "may still be there, and cost" if deleted else "stays, and costs"
            self._tell_that_it_stays(how)
        return int(bool(trouble))

    def _tell_that_it_stays(self, how: str) -> None:
        """Tells of a queued resource that goes on, and how it is ended."""
        if not self._commands.values.existing:  # that was there before, as its owner knows
            end = self._commands.how_to_end()
            print(f"launch: the VM {how}: {end}", file=sys.stderr, flush=True)

    def _follow(self) -> None:
        """Prints worker 0's output until it ends, or the connection does; the next look tells."""
        (command,) = self._commands.steps(Do.FOLLOW, printed=self._printed)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace") as ssh:
            for line in ssh.stdout:
                print(line, end="", flush=True)
                self._printed += 1

    def _show_failure(self, seen: Seen) -> None:
        for i, state in enumerate(seen.workers):
            if state.startswith("exited") and state not in ("exited 0", f"exited {common.STOPPED}"):
                done = common.call(
                    self._commands.ssh(tpu_worker.tail(self._commands.run_id), str(i)),
                    program_of=_SDK,
                )
                for line in done.stdout.splitlines():
                    print(f"[worker {i}] {line}", file=sys.stderr)


if __name__ == "__main__":
    common.run("launch.tpu_vm", __doc__, define, main)
