"""What a process is told from outside. Imports nothing heavy: a signal may come before JAX does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Signals:
    """Listens from the moment it is made.

    SIGTERM and SIGINT mean: end now. SIGUSR1: training has ended, score what is left and end.
    """

    def __init__(self):
        self.end = threading.Event()
        self.training_ended = False
        signal.signal(signal.SIGTERM, lambda *_: self.end.set())
        signal.signal(signal.SIGINT, lambda *_: self.end.set())
        signal.signal(signal.SIGUSR1, lambda *_: setattr(self, "training_ended", True))


_received: list[int] = []  # since the outermost `sigterm` began


def asked_to_stop() -> bool:
    """Whether SIGTERM or SIGINT came since `sigterm` began."""
    return bool(_received)


@contextmanager
def sigterm() -> Iterator[list[int]]:
    """A list that stays empty until SIGTERM (or SIGINT) asks to stop.

    Where an entry point listens already, before its imports, what it heard counts within too.
    """
    signals = (signal.SIGTERM, signal.SIGINT)
    try:
        before = [signal.signal(s, _note) for s in signals]
    except ValueError:  # not the main thread: the caller deals with signals
        yield []
        return
    nested = _note in before
    try:
        yield _received
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
        if not nested:
            _received.clear()


def _note(number: int, _: object) -> None:
    _received.append(number)
