"""Ends of a command that are no errors of its own: Ctrl-C, a reader that has gone (`… | head -1`),
and a full disk behind `> file`.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pintern.errors import EXIT_CODE

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
        _write_no_more()
        sys.exit(UNREAD)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or error.filename is not None:
            raise
        _write_no_more()
        print(f"error: The output can't be written: {error.strerror}.", file=sys.stderr)
        sys.exit(EXIT_CODE)


def _write_no_more() -> None:
    """Python flushes standard output once more when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
