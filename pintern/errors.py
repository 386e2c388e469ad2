"""Mistakes of the user's, told in one or two lines and without a traceback."""

import functools
import sys
from collections.abc import Callable

EXIT_CODE = 2


class UserError(Exception):
    """A bad value, what was expected, and the mend.

    Every entry point prints it as is and exits with code 2; a library caller may catch it.
    """

    def __init__(self, *sentences: str):
        super().__init__(" ".join(sentences))


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its name; 200 characters at most."""
    text = str(error).strip() or type(error).__name__
    line = text.splitlines()[0]
    return line if len(line) < 200 else line[:199] + "…"


def report_user_errors(main: Callable[..., None]) -> Callable[..., None]:
    """Wrap an entry point: a UserError becomes one message on stderr and exit code 2."""

    @functools.wraps(main)
    def wrapped(*args: object) -> None:
        try:
            main(*args)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(EXIT_CODE)

    return wrapped
