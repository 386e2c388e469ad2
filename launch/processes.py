"""Child processes watched together: prefixed output, one failure stops all, signals handed on."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TextIO

from launch.common import STOPPED
from pintern.distributed import STOPPED_STATUS, stopped_status
from pintern.errors import UserError

_POLL = 0.1  # seconds
_LAST_WORDS = 5.0  # seconds to write what stands in the pipes
_PR_SET_PDEATHSIG = 1
# Loaded here, because a child should do next to nothing between fork and exec.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclasses.dataclass(frozen=True)
class Child:
    """A process to start.

    Attributes:
      name: what its lines begin with, in brackets; empty for lines as they are.
      command: program and arguments.
      environment: variables beyond this process's own.
      watcher: stands beside the others: its failure stops nobody, and once they have ended it is
        asked (SIGUSR1) to finish what there is and end.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    watcher: bool = False


def supervise(plan: Sequence[Child], *, grace: float) -> int:
    """Starts the children and waits for them.

    Args:
      plan: what to start.
      grace: seconds between SIGTERM and SIGKILL once one has failed.

    Returns:
      0 if all went well or saved and stopped as they were asked to; else the exit status of the
      first that failed, 128 + n if signal n killed it.
    """
    running = Running(plan)
    workers = [i for i, child in enumerate(plan) if not child.watcher]
    watchers = [i for i, child in enumerate(plan) if child.watcher]
    status = 0
    with running.signals():
        failed = running.wait(workers, until_failure=True)
        if failed is not None:
            status = running.status(failed)
            others = [i for i in workers if running.alive(i)]
            name = plan[failed].name
            _tell(
                f"process {name}".strip()
                + f" {_describe(running.code(failed))}"
                + (
                    f"; stopping process {', '.join(plan[i].name for i in others)}"
                    if others
                    else ""
                )
            )
            running.stop([*others, *watchers], grace)
        elif running.signalled:
            if any(running.code(i) != 0 for i in workers):
                status = stopped_status()  # a launcher around this one has to know
            running.stop(watchers, grace)
        else:
            for i in watchers:
                running.send(i, signal.SIGUSR1)
            running.wait(watchers)
        running.join()
    for i in watchers:
        if running.code(i) not in (0, -signal.SIGTERM, -signal.SIGUSR1):
            _tell(f"{plan[i].name} {_describe(running.code(i))}; training went on without it")
    return status


class Running:
    """Started children: their processes, and the threads that hand their output on."""

    def __init__(self, plan: Sequence[Child]):
        self.signalled = 0
        self._lock = threading.Lock()
        self._processes: list[subprocess.Popen[str]] = []
        self._readers: list[threading.Thread] = []
        # No thread before the last fork: between fork and exec a child has none.
        try:
            for child in plan:
                self._processes.append(_start(child))
        except OSError as error:
            self.stop(range(len(self._processes)), 0)
            raise UserError(f"{child.command[0]} can't be started: {error.strerror}.") from error
        for child, process in zip(plan, self._processes, strict=True):
            prefix = f"[{child.name}] " if child.name else ""
            for source, sink in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
                # A daemon: the interpreter's own end would wait for the others without limit.
                reader = threading.Thread(
                    target=self._copy, args=(source, sink, prefix), daemon=True
                )
                reader.start()
                self._readers.append(reader)

    def _copy(self, source: TextIO, sink: TextIO, prefix: str) -> None:
        for line in source:
            with self._lock:
                sink.write(prefix + line if line.endswith("\n") else f"{prefix}{line}\n")
                sink.flush()

    def code(self, i: int) -> int | None:
        """A child's return code as subprocess tells it: None while it runs, −n for a signal."""
        return self._processes[i].poll()

    def status(self, i: int) -> int:
        """A child's exit status as a shell tells it."""
        code = self.code(i) or 0
        return 128 - code if code < 0 else code

    def alive(self, i: int) -> bool:
        """Whether a child runs."""
        return self.code(i) is None

    def send(self, i: int, number: int) -> None:
        """Sends a signal to a child's processes; none if it has ended."""
        if self.alive(i) or self._readers_of(i):
            with suppress(ProcessLookupError):
                os.killpg(self._processes[i].pid, number)

    def _readers_of(self, i: int) -> list[threading.Thread]:
        """Threads whose output isn't at its end: the child, or what it started, holds it open."""
        return [reader for reader in self._readers[2 * i : 2 * i + 2] if reader.is_alive()]

    def wait(self, which: Sequence[int], *, until_failure: bool = False) -> int | None:
        """Waits for children; the first that failed, which with `until_failure` ends the wait."""
        failed = None
        while failed is None or not until_failure:
            alive = [i for i in which if self.alive(i)]
            bad = [i for i in which if i not in alive and not self._is_well(i)]
            if bad and failed is None:
                # The cause is who died of a signal from outside, if several are found at once.
                failed = min(bad, key=lambda i: (self.code(i) not in (-9, -15), i))
            elif not alive:
                return failed
            else:
                time.sleep(_POLL)
        return failed

    def _is_well(self, i: int) -> bool:
        """Ended as it should: complete, or stopped because a signal said so; never by SIGKILL."""
        return self.code(i) == 0 or (self.signalled > 0 and self.code(i) in (STOPPED, -15))

    def stop(self, which: Sequence[int], grace: float) -> None:
        """Asks children to end, and kills those that haven't after `grace` seconds."""
        for i in which:
            self.send(i, signal.SIGTERM)
        deadline = time.monotonic() + grace
        while time.monotonic() < deadline and any(self.alive(i) for i in which):
            time.sleep(_POLL)
        for i in which:
            self.send(i, signal.SIGKILL)
            self._processes[i].wait()

    def join(self) -> None:
        """Waits until all output is written.

        What a script started may outlive it and hold the output open. After a signal it may be
        saving, and is waited for; otherwise it was left behind, and is waited for no longer.
        """
        deadline = time.monotonic() + _LAST_WORDS
        while any(reader.is_alive() for reader in self._readers):
            if not self.signalled and time.monotonic() > deadline:
                return
            time.sleep(_POLL)

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Hands SIGTERM and SIGINT to all children, as SIGTERM; the third one kills them."""

        def hand_on(number: int, _: object) -> None:
            self.signalled += 1
            for i in range(len(self._processes)):
                self.send(i, signal.SIGTERM if self.signalled < 3 else signal.SIGKILL)

        before = {s: signal.signal(s, hand_on) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _start(child: Child) -> subprocess.Popen[str]:
    def end_with_parent() -> None:
        # A launcher that is killed outright leaves nobody behind (Linux only).
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    return subprocess.Popen(
        child.command,
        env=os.environ
        | {STOPPED_STATUS: str(STOPPED), "PYTHONUNBUFFERED": "1"}
        | child.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        # Ctrl-C reaches the launcher alone, which hands it on once.
        start_new_session=True,
        preexec_fn=end_with_parent,
    )


def _describe(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by signal {-code} ({signal.Signals(-code).name})"
    if code == STOPPED:
        return f"was stopped by a signal and saved (exit status {STOPPED})"
    return f"ended with exit status {code}"


def _tell(message: str) -> None:
    print(f"launch: {message}", file=sys.stderr, flush=True)
