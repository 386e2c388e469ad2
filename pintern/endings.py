"""Ends of a command that are no errors: Ctrl-C, and a reader that has gone (`… | head -1`)."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# What a shell tells of a command that Ctrl-C ended, or that wrote to nobody.
INTERRUPTED, UNREAD = 130, 141


@contextmanager
def ends_quietly() -> Iterator[None]:
    """Lets a command end at either by its exit status, with a line at most."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored
        signal.signal(signal.SIGINT, _interrupt)
        sys.unraisablehook = _interrupt_again
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        _tell()
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        output = select.poll()
        output.register(sys.stdout, 0)  # asks for nothing but whether its other end is closed
        if not output.poll(0):
            raise  # it was another pipe
        # Python flushes once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(UNREAD)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Ctrl-C; amid an import it ends the process at once.

    Libraries written in C, interrupted while they are loaded, would tell it as errors of theirs.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _tell()
            os._exit(INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


def _interrupt_again(lost: sys.UnraisableHookArgs) -> None:
    """Ctrl-C that came where nothing can be raised (JAX's callback on garbage) comes once more."""
    if lost.exc_type is KeyboardInterrupt:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(lost)


def _tell() -> None:
    print("Interrupted.", file=sys.stderr, flush=True)
