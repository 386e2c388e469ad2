"""Progress on long work: a bar with rate and time left, or plain lines where no terminal is."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from pintern.distributed import is_first

_PLAIN_EVERY = 10.0  # seconds between lines without a terminal
_SETTLED, _RECENT = 1.0, 30.0  # seconds that the rate is taken over, at least and at most


class Progress:
    """Counts towards a total on stderr.

    Rate and time left are of the recent units, and untold before there are some: the first of all
    waits for its program to be compiled, and says nothing of the others.

    Args:
      title: what is being done.
      total: how many units there are.
      done: units that were done before (a resumed run).
      units: their name.
    """

    def __init__(self, title: str, total: int, *, done: int = 0, units: str = "steps"):
        self._shown = is_first()
        self._title, self._total, self._done, self._units = title, total, done, units
        self._printed, self._told = time.monotonic(), -1
        self._recent: deque[tuple[float, int]] = deque()  # when, and how many were done by then
        self._bar = self._task = None

    def __enter__(self) -> Progress:
        if self._shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(
                self._title, total=self._total, completed=self._done, note="", rate=""
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and self._told < self._done:
            self._print(time.monotonic(), "")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Takes the bar off the terminal while another one has it, and the time off the rate."""
        if self._bar is not None:
            self._bar.stop()
        try:
            yield
        finally:
            self._recent.clear()
            if self._bar is not None:
                self._bar.start()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Tells that `count` more units are done; `note` says how it goes (level, loss)."""
        self._done += count
        now = time.monotonic()
        while len(self._recent) > 1 and now - self._recent[0][0] > _RECENT:
            self._recent.popleft()
        self._recent.append((now, self._done))
        if self._bar is not None:
            rate = self._rate()
            shown = _shown(rate) if rate else ""
            self._bar.update(self._task, completed=self._done, note=note, rate=shown)
        elif now - self._printed >= _PLAIN_EVERY:
            self._print(now, note)

    def _rate(self) -> float:
        """Units a second; 0 where it isn't known yet."""
        if not self._recent:
            return 0.0
        (began, first), (now, done) = self._recent[0], self._recent[-1]
        return (done - first) / (now - began) if now - began >= _SETTLED else 0.0

    def _print(self, now: float, note: str) -> None:
        self._printed, self._told = now, self._done
        if not self._shown:
            return
        rate, remaining = self._rate(), self._total - self._done
        speed = f", {_shown(rate)}, {remaining / rate:.0f} s left" if rate else ""
        print(
            f"{self._title}: {self._done}/{self._total} {self._units}{speed} {note}".rstrip(),
            file=sys.stderr,
            flush=True,
        )


def _shown(rate: float) -> str:
    """A rate with a digit at least that isn't 0: steps may take minutes."""
    return f"{rate:.1f}/s" if rate >= 1 else f"{rate:.2g}/s"
