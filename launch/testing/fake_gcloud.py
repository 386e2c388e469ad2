"""A `gcloud` that replays what a cloud goes through; its workers really run what they are told.

A test puts a script named `gcloud` on PATH that calls `main` with a folder. `scenario.json` there:

    {"workers": 2, "create": ["error text or empty", ...], "describe": [likewise],
     "lives": [[{"request": "ACCEPTED"},
                {"request": "ACTIVE", "vm": "READY", "broken": [1]}, ...], ...]}

A life begins with a successful `create` (the first is there already with "exists": true) and ends
with `delete`. Each look at the request (or, with "existing": true, at the VM) moves on to the
life's next frame, and it stays at the last. "delete" is the error of each `delete`, if any;
"error" is what a FAILED request says; "broken" workers answer no ssh, or with "broken_for" none
whose command holds that; "lost_after" seconds of following a log the next frame comes. A worker is
a folder, its home: ssh runs the command there, scp copies into it. A VM that is preempted or
deleted loses its processes and its homes. Every call is written to `calls.jsonl`.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any


def main(folder: Path, argv: list[str]) -> int:
    """One call."""
    with (folder / "calls.jsonl").open("a") as log:
        log.write(json.dumps(argv) + "\n")
    parser = argparse.ArgumentParser(prog="gcloud", allow_abbrev=False)
    parser.add_argument("words", nargs="+")
    for name in ("zone", "project", "format", "worker", "command", "output-directory"):
        parser.add_argument(f"--{name}")
    for name in ("node-id", "accelerator-type", "runtime-version"):
        parser.add_argument(f"--{name}")
    for name in ("force", "quiet", "spot"):
        parser.add_argument(f"--{name}", action="store_true")
    given = parser.parse_intermixed_args(argv)
    assert given.words[:2] == ["compute", "tpus"] and given.zone, argv
    cloud = Cloud(folder)
    kind, verb = given.words[2:4]
    return getattr(cloud, f"{kind}_{verb}".replace("-", "_"))(given)


def install(folder: Path, scenario: dict[str, Any]) -> Path:
    """Writes scenario and script; the folder to put in front of PATH."""
    programs = folder / "bin"
    programs.mkdir(parents=True)
    (folder / "scenario.json").write_text(json.dumps(scenario))
    script = programs / "gcloud"
    script.write_text(
        f"#!{sys.executable}\nimport sys\nfrom pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        "from launch.testing.fake_gcloud import main\n"
        f"sys.exit(main(Path({str(folder)!r}), sys.argv[1:]))\n"
    )
    script.chmod(0o755)
    return programs


class Cloud:
    """The scenario, and where in it the cloud is."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.scenario = json.loads((folder / "scenario.json").read_text())
        self.place = folder / "place.json"

    def _where(self, **step: int) -> dict[str, int]:
        """Where the cloud is, after a step."""
        start = {"life": 0, "frame": -1, "there": int(self.scenario.get("exists", False))}
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            where = json.loads(self.place.read_text()) if self.place.exists() else start
            if step.pop("next_frame", 0) and where["there"]:
                where["frame"] = min(where["frame"] + 1, len(self._life(where)) - 1)
            where |= step
            self.place.write_text(json.dumps(where))
        return where

    def _life(self, where: dict[str, int]) -> list[dict[str, Any]]:
        return self.scenario["lives"][where["life"]]

    def _frame(self, **step: int) -> dict[str, Any]:
        where = self._where(**step)
        frame = self._life(where)[max(where["frame"], 0)] if where["there"] else {}
        if frame.get("vm") != "READY":
            self._lose_workers()
        return frame

    def _homes(self) -> list[Path]:
        homes = [self.folder / f"worker-{i}" for i in range(self.scenario["workers"])]
        for home in homes:
            home.mkdir(exist_ok=True)
        return homes

    def _next_error(self, verb: str) -> str:
        tries = self.folder / f"{verb}s"
        count = len(tries.read_text()) if tries.exists() else 0
        tries.write_text("x" * (count + 1))
        return [*self.scenario.get(verb, []), *[""] * (count + 1)][count]

    def _lose_workers(self) -> None:
        for home in self.folder.glob("worker-*"):
            for pid in home.glob("pintern-launch/*/*pid"):
                with contextlib.suppress(OSError, ValueError):
                    os.killpg(int(pid.read_text()), signal.SIGKILL)
            shutil.rmtree(home, ignore_errors=True)

    # ── queued resources ──

    def queued_resources_describe(self, given: argparse.Namespace) -> int:
        """The request, after one more frame."""
        if error := self._next_error("describe"):
            return _refuse(error)
        frame = self._frame(next_frame=1)
        if "request" not in frame:
            return _refuse("NOT_FOUND: Resource was not found")
        state: dict[str, Any] = {"state": frame["request"]}
        if "error" in frame:
            state["failedData"] = {"error": {"code": 8, "message": frame["error"]}}
        print(json.dumps({"name": given.words[4], "state": state}))
        return 0

    def queued_resources_create(self, given: argparse.Namespace) -> int:
        """The next life, or the next of the errors."""
        assert given.node_id and given.accelerator_type and given.runtime_version
        where = self._where()
        if where["there"]:
            return _refuse("ALREADY_EXISTS")
        if error := self._next_error("create"):
            return _refuse(error)
        self._where(life=where["life"] + (where["frame"] >= 0), frame=-1, there=1)
        return 0

    def queued_resources_delete(self, given: argparse.Namespace) -> int:
        """The end of a life."""
        assert given.force and given.quiet
        if "delete" in self.scenario:
            return _refuse(self.scenario["delete"])
        self._lose_workers()
        self._where(there=0)
        return 0

    # ── VMs ──

    def tpu_vm_describe(self, given: argparse.Namespace) -> int:
        """The VM."""
        frame = self._frame(next_frame=int(self.scenario.get("existing", False)))
        if "vm" not in frame:
            return _refuse("NOT_FOUND: Resource was not found")
        endpoints = [{"ipAddress": f"10.0.0.{i}"} for i in range(self.scenario["workers"])]
        print(json.dumps({"state": frame["vm"], "networkEndpoints": endpoints}))
        return 0

    def tpu_vm_ssh(self, given: argparse.Namespace) -> int:
        """Runs the command on each worker asked for; fails if one can't be reached."""
        frame = self._frame()
        assert frame.get("vm") == "READY", "ssh to a VM that is not there"
        homes, failed = self._homes(), False
        chosen = range(len(homes)) if given.worker == "all" else [int(given.worker)]
        for i in chosen:
            if i in frame.get("broken", []) and frame.get("broken_for", "") in given.command:
                failed = True
                continue
            environment = os.environ | {"HOME": str(homes[i])}
            done = subprocess.Popen(
                ["bash", "-c", given.command],
                cwd=homes[i],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=(
                    (Path(given.output_directory) / f"{i}.log").open("w")
                    if given.output_directory
                    else None
                ),
            )
            lost_after = frame.get("lost_after") if "--follow" in given.command else None
            try:
                failed |= done.wait(lost_after) != 0
            except subprocess.TimeoutExpired:
                self._frame(next_frame=1)
                done.kill()
                return _refuse("ssh: Connection closed by remote host")
        return _refuse("ssh: connect to host port 22: Connection timed out") if failed else 0

    def tpu_vm_scp(self, given: argparse.Namespace) -> int:
        """Copies a file into each worker's home."""
        source, target = given.words[4:6]
        assert given.worker == "all"
        broken = self._frame().get("broken", [])
        for i, home in enumerate(self._homes()):
            if i not in broken:
                shutil.copy(source, home / target.partition(":")[2])
        return _refuse("scp: Connection timed out") if broken else 0


def _refuse(message: str) -> int:
    print(f"ERROR: (gcloud.compute.tpus) {message}", file=sys.stderr)
    return 1
