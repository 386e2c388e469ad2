"""What the launchers share: flags of their own, the command behind `--`, names that stay."""

from __future__ import annotations

import hashlib
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from absl import flags

from pintern.cli import flag_mistake
from pintern.errors import EXIT_CODE, UserError
from pintern.folders import plain_name
from pintern.remote import is_remote

# What training exits with under a launcher when a signal stopped it after a checkpoint
# (sysexits.h: EX_TEMPFAIL, try again).
STOPPED = 75
REPOSITORY = Path(__file__).resolve().parents[1]

Main = Callable[[flags.FlagValues, list[str]], int]


def run(module: str, doc: str, define: Callable[[flags.FlagValues], None], main: Main) -> None:
    """Parses a launcher's flags, calls it with them and the command behind `--`, and exits.

    Each launcher has its own FlagValues: `--name` is another thing in each, and all of them can be
    imported by one process.
    """
    # A script that starts a launcher in the background leaves Ctrl-C ignored; it counts here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    argv = sys.argv[1:]
    mine, command = split_command(argv)
    values = flags.FlagValues()
    define(values)
    if any(argument in ("--help", "-h", "--helpfull", "-?") for argument in mine):
        print(f"{doc.strip()}\n\nFlags:\n{values.module_help(module) or values.get_help()}")
        sys.exit(0)
    try:
        if not command:  # forgotten, or its flags taken for the launcher's
            raise UserError(
                "There is no command to run.",
                f"Give it behind `--`: python -m {module} ... -- python -m pintern.train ...",
            )
        rest = values([module, *mine])
        if len(rest) > 1:
            raise UserError(
                f"Unexpected argument {rest[1]!r}; the command to run goes behind `--`."
            )
        sys.exit(main(values, command))
    except flags.Error as error:
        print(f"error: {flag_mistake(error, values)}", file=sys.stderr)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    sys.exit(EXIT_CODE)


def define_common(values: flags.FlagValues) -> None:
    """Flags that every launcher has."""
    flags.DEFINE_boolean(
        "dry_run", False, "Print exactly what would run, and run nothing.", flag_values=values
    )
    flags.DEFINE_boolean(
        "with_eval",
        False,
        "Start `pintern.evaluate --watch` beside training, on the CPU: it scores each checkpoint.",
        flag_values=values,
    )


def split_command(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands before the first `--`, and what stands behind it."""
    if "--" not in argv:
        return list(argv), []
    at = list(argv).index("--")
    return list(argv[:at]), list(argv[at + 1 :])


def workdir_of(command: Sequence[str]) -> str | None:
    """The value of `--workdir` in a command."""
    for argument, following in zip(command, [*command[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        if name in ("--workdir", "-workdir"):
            return (value if equals else following) or None
    return None


def watch_command(command: Sequence[str]) -> list[str]:
    """The watcher beside a training command: same interpreter, same run folder."""
    workdir = workdir_of(command)
    if workdir is None:
        raise UserError(
            "--with_eval needs to know the run's folder; the command has no --workdir.",
            "Add --workdir=DIR to it, or leave --with_eval out.",
        )
    first = command[0]
    interpreter = first if re.fullmatch(r"python[\d.]*", Path(first).name) else "python"
    return [interpreter, "-m", "pintern.evaluate", "--watch", f"--workdir={workdir}"]


def is_bucket(path: str | None) -> bool:
    """Whether a path lies in an object store, and so outlives the machine."""
    return path is not None and is_remote(path) and not path.startswith(("file:", "memory:"))


def digest(text: str) -> str:
    """A short name for a text; the same one every time."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def run_name(command: Sequence[str], *, absolute: bool) -> str:
    """A name for the run of a command, the same one every time: lower case, digits, dashes.

    It is made of the run's folder: one folder, one run.

    Args:
      command: the command.
      absolute: whether the folder is on this machine, so that two of one name differ.
    """
    workdir = workdir_of(command)
    if workdir is None:
        return f"pintern-{digest(shlex.join(command))}"
    where = workdir if is_bucket(workdir) or not absolute else str(Path(workdir).absolute())
    last = plain_name(where.rstrip("/").rpartition("/")[2])
    return "-".join(part for part in ("pintern", last[:24].strip("-"), digest(where)) if part)


def check_name(name: str) -> str:
    """Raises unless a name is one that Kubernetes and Google Cloud take."""
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", name):
        raise UserError(
            f"--name={name}: up to 40 lower-case letters, digits and dashes, a letter first."
        )
    return name


def parse_environment(pairs: Sequence[str]) -> dict[str, str]:
    """`NAME=value` pairs as a dict."""
    for pair in pairs:
        if not re.fullmatch(r"[A-Za-z_]\w*=.*", pair, re.S):
            raise UserError(f"--env={pair}: expected NAME=value.")
    return dict(pair.split("=", 1) for pair in pairs)


def exports(environment: Mapping[str, str]) -> str:
    """Shell lines that export variables."""
    return "".join(f"export {name}={shlex.quote(v)}\n" for name, v in environment.items())


def call(command: Sequence[str], *, program_of: str) -> subprocess.CompletedProcess[str]:
    """Runs a tool to its end, output captured.

    Raises:
      UserError: the program isn't installed; `program_of` says what it belongs to.
    """
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError(
            f"`{command[0]}` is not on PATH.", f"Install {program_of}, or use --dry_run."
        ) from None


def last_line(text: str) -> str:
    """The last line of a tool's complaint that says anything.

    gcloud adds advice and details behind the line that says what is wrong, which it marks.
    """
    said = [line.strip() for line in text.splitlines() if line.strip()]
    marked = [line for line in said if line.startswith("ERROR: ")]
    return (marked or said or ["no message"])[-1]
