"""Starts judge and player for each program, waits for the verdict, and cleans up."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from pintern.errors import UserError
from pintern.evaluation.sandbox.confine import REQUIRED

Reason = Literal["right", "mismatch", "error", "timeout", "stopped"]

_ROOT = str(Path(__file__).parents[3])
_START = (
    "import sys; sys.path.append({root!r}); "
    "from pintern.evaluation.sandbox.{role} import main; main(sys.argv[1])"
)
_TICK = 0.05  # seconds between two looks at the folder
_MAX_PROGRAM = 100_000  # characters


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
      cpu_seconds: of the program, all its tests together; the judge has as many.
      wall_seconds: of both, from start to verdict.
      memory_bytes: of address space, each.
      file_bytes: of one file in its folder.
      folder_bytes: of its folder.
      folder_files: in its folder.
    """

    cpu_seconds: int = 10
    wall_seconds: float = 30.0
    memory_bytes: int = 1 << 29
    file_bytes: int = 1 << 20
    folder_bytes: int = 1 << 23
    folder_files: int = 100


@dataclasses.dataclass(frozen=True)
class Problem:
    """What a program is judged by.

    Attributes:
      tests: source of each; they are run in order, to the first that fails.
      names: of the program's functions and classes that the tests use. Every other name means in
        the tests what it means in Python: a program can't shadow `set` or `abs` there.
      imports: import statements for the tests, of the standard library.
      setup: run before the tests, and before the names are there.
    """

    tests: tuple[str, ...]
    names: tuple[str, ...]
    imports: str = ""
    setup: str = ""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How a program did.

    Attributes:
      reason: `right` (every test held), `mismatch` (one didn't), `error` (something raised),
        `timeout` (CPU or wall), `stopped` (it ended itself, or passed another limit).
      detail: the test, the message, or the limit.
      protections: that were in force.
    """

    reason: Reason
    detail: str = ""
    protections: tuple[str, ...] = ()


@functools.cache
def protections() -> tuple[str, ...]:
    """The protections in force on this machine, as attempts to get around them show.

    Raises:
      UserError: a program could read files, start processes or open sockets here.
    """
    program = """
import os, socket
def refused(act):
    try:
        act()
    except PermissionError:
        return True
    return False
def reads(path): return refused(lambda: open(path))
def lists(path): return refused(lambda: os.listdir(path))
def forks(): return refused(os.fork)
def connects(): return refused(socket.socket)
"""
    with tempfile.NamedTemporaryFile() as file:
        problem = Problem(
            tests=(
                "assert lists('/')",
                f"assert reads({file.name!r})",
                "assert forks()",
                "assert connects()",
            ),
            names=("reads", "lists", "forks", "connects"),
        )
        verdict = run_program(program, problem)
    if verdict.reason != "right":
        raise UserError(
            f"A program that should be confined here isn't: {verdict.reason} {verdict.detail}.",
            "Evaluate in another machine; this is a fault, please report it with the kernel's "
            "version.",
        )
    return verdict.protections


def run_programs(
    programs: Sequence[str],
    problems: Sequence[Problem],
    *,
    limits: Limits | None = None,
    unconfined: bool = False,
) -> list[Verdict]:
    """Judges each program by its problem's tests, one per core at a time; in their order.

    Args:
      programs: source of each.
      problems: for each.
      limits: of each.
      unconfined: see `run_program`.
    """

    def judge(pair: tuple[str, Problem]) -> Verdict:
        return run_program(*pair, limits=limits, unconfined=unconfined)

    pool = ThreadPoolExecutor(_cores())
    try:
        return list(pool.map(judge, zip(programs, problems, strict=True)))
    finally:
        pool.shutdown(cancel_futures=True)


def run_program(
    program: str, problem: Problem, *, limits: Limits | None = None, unconfined: bool = False
) -> Verdict:
    """Judges one program.

    Args:
      program: source, whatever it does.
      problem: its tests; trusted, though confined as well.
      limits: of time and size.
      unconfined: run it even where the kernel offers no Landlock or seccomp. What limits there are
        still hold, and files, processes and the network are open to it.

    Raises:
      UserError: the kernel can't confine it, and `unconfined` isn't given.
    """
    limits = limits or Limits()
    if len(program) > _MAX_PROGRAM:
        long = f"a program of {len(program)} characters; the limit is {_MAX_PROGRAM}"
        return Verdict("error", long)
    job = {"program": program, **dataclasses.asdict(problem)}
    with tempfile.TemporaryDirectory(prefix="pintern-program-") as folder:
        return _run(json.dumps(job).encode(), folder, limits, () if unconfined else REQUIRED)


def _run(job: bytes, folder: str, limits: Limits, required: Sequence[str]) -> Verdict:
    deadline = time.monotonic() + limits.wall_seconds
    asked, asks = os.pipe()
    answered, answers = os.pipe()
    try:
        player = _start("player", (asked, answers), folder, folder, limits, required)
        judge = _start("judge", (answered, asks), None, folder, limits, required)
    finally:
        for descriptor in (asked, asks, answered, answers):
            os.close(descriptor)
    with _ended(player), _ended(judge):
        with contextlib.suppress(BrokenPipeError):
            judge.stdin.write(job)
            judge.stdin.close()
        stopped = _wait(judge, folder, deadline, limits)
        if stopped is not None:
            return stopped
        said = judge.stdout.read()
        judge.wait()
        if judge.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
            return Verdict("timeout", "the tests passed the limit of CPU seconds")
        if not said:
            return Verdict("stopped", f"the tests ended their process ({judge.returncode})")
        verdict = json.loads(said)
        if verdict["reason"] == "unprotected":
            raise UserError(
                f"This kernel can't confine a model's program: {verdict['detail']} "
                "(Linux 5.13 or later with Landlock and seccomp is needed).",
                "Evaluate elsewhere, or pass --config.eval.unconfined=True to run the programs "
                "with resource limits alone, in a machine that may be lost.",
            )
        if verdict["reason"] == "stopped":
            verdict["reason"], verdict["detail"] = _how_it_ended(player, verdict["detail"])
        return Verdict(verdict["reason"], verdict["detail"], tuple(verdict["protections"]))


def _start(
    role: str,
    pipes: tuple[int, int],
    writable: str | None,
    folder: str,
    limits: Limits,
    required: Sequence[str],
) -> subprocess.Popen:
    """A process of one role, in a session of its own, with nothing of this one's but its pipes."""
    arguments = {
        "read": pipes[0],
        "write": pipes[1],
        "root": _ROOT,
        "required": list(required),
        "limits": {
            "folder": writable,
            "cpu_seconds": limits.cpu_seconds,
            "memory_bytes": limits.memory_bytes,
            "file_bytes": limits.file_bytes,
        },
    }
    is_judge = role == "judge"
    # -P -s is what -I does for paths. Its -E would ignore the one variable that there is, without
    # which the order of a set differs from run to run, and with it some verdicts.
    code = _START.format(root=_ROOT, role=role)
    return subprocess.Popen(
        [sys.executable, "-P", "-s", "-S", "-c", code, json.dumps(arguments)],
        stdin=subprocess.PIPE if is_judge else subprocess.DEVNULL,
        stdout=subprocess.PIPE if is_judge else subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"PYTHONHASHSEED": "0"},
        cwd=folder,
        pass_fds=pipes,
        start_new_session=True,
    )


@contextlib.contextmanager
def _ended(process: subprocess.Popen) -> Iterator[None]:
    """Whatever happens, the process is gone in the end, and anything that it could have started."""
    try:
        yield
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def _wait(judge: subprocess.Popen, folder: str, deadline: float, limits: Limits) -> Verdict | None:
    """None once the judge has spoken or ended; else the limit that was met."""
    # Not `select`, which fails where the 1,024 descriptors below it are taken.
    ready = select.poll()
    ready.register(judge.stdout, select.POLLIN)
    while time.monotonic() < deadline:
        if ready.poll(1000 * _TICK):
            return None
        files, size = 0, 0
        with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                files += 1
                with contextlib.suppress(FileNotFoundError):
                    size += entry.stat(follow_symlinks=False).st_size
                if files > limits.folder_files or size > limits.folder_bytes:
                    return Verdict("stopped", "the program filled its folder")
    return Verdict("timeout", f"no verdict within {limits.wall_seconds:g} s")


def _how_it_ended(player: subprocess.Popen, detail: str) -> tuple[Reason, str]:
    """Why the player stopped answering."""
    try:
        code = player.wait(timeout=_TICK)
    except subprocess.TimeoutExpired:
        return "stopped", detail
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return "timeout", "the program passed the limit of CPU seconds"
    return "stopped", f"the program ended its process ({code})"


def _cores() -> int:
    """That this process may use; macOS doesn't tell, and has all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
