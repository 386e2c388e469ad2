"""How every entry point starts: flags in, one clear message out when something is wrong."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from absl import app, flags, logging

from pintern.endings import ends_quietly
from pintern.errors import EXIT_CODE, report_user_errors
from pintern.paths import user_cache

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_FIELD = "config.GROUP.FIELD"
_HELP = ("--help", "--helpshort", "--helpfull", "-h", "-?")


def define_config() -> None:
    """Defines `--config`, an experiment file, and `--config.<field>=` to change single fields."""
    flags.DEFINE_string(
        "config", None, "Experiment file with get_config(): FILE.py, or FILE.py:ARGUMENT."
    )
    flags.DEFINE_multi_string(
        _FIELD,
        [],
        "Changes one field, with or without --config: e.g. --config.train.steps=400 "
        "--config.model.path=DIR. `python -m pintern.config` prints all fields with their "
        "defaults (pintern/config/fields.py)",
    )
    for name in ("config", _FIELD):  # so that --help of the command shows them
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])


def config_flags() -> list[str]:
    """The flags that say something of the config, by their names as they were given."""
    changed = [f"--config.{change.partition('=')[0]}" for change in flags.FLAGS[_FIELD].value]
    return ["--config"] * (flags.FLAGS.config is not None) + changed


def config_from_flags(own: Callable[[], ConfigDict] | None = None) -> ConfigDict:
    """The checked config that the flags name.

    Args:
      own: gives the one that stands without `--config`, a run's; the default config unless given.
    """
    from pintern.config import default_config, validate
    from pintern.config.given import change_fields, read_config_file

    given = flags.FLAGS.config
    config = (own or default_config)() if given is None else read_config_file(given)
    change_fields(config, flags.FLAGS[_FIELD].value)
    return validate(config, recorded=own is not None and given is None)


def flag_mistake(error: Exception, values: flags.FlagValues) -> str:
    """What absl says of a wrong flag, in one line; a required one that isn't there is named."""
    said = str(error.args[0] if error.args else error).strip().splitlines()[0]
    absent = re.search(r"Flag --(\w+) must have a value", said)
    if absent:
        said = f"--{absent[1]} is missing: {values[absent[1]].help}"
    return f"{said} (see --help)"


def _with_fields(argv: Sequence[str]) -> list[str]:
    """Turns `--config.train.steps=8` into a value of the one flag that all fields share."""
    if _FIELD not in flags.FLAGS:
        return list(argv)
    left, found = flags.FLAGS.read_flags_from_files(list(argv), force_gnu=False), []
    while left and left[0] != "--":
        argument = left.pop(0)
        given = re.fullmatch(r"--?(no)?config\.([^=]+)(?:=(.*))?", argument, re.S)
        if given is None:
            found.append(argument)
            continue
        no, field, value = given.groups()
        if value is None:
            alone = no or not left or left[0].startswith("--")
            value = ("false" if no else "true") if alone else left.pop(0)
        found.append(f"--{_FIELD}={field}={value}")
    return found + left


def _parse(argv: list[str]) -> list[str]:
    """Parses flags; what is wrong with them is told without a traceback."""
    asked = [argument for argument in argv if argument in _HELP]
    if asked:
        app.usage(shorthelp="--helpfull" not in asked, writeto_stdout=True)
        print("\n--helpfull shows the flags of all modules.")
        sys.exit(0)
    try:
        rest = flags.FLAGS(_with_fields(argv))
    except flags.Error as error:
        _fail(flag_mistake(error, flags.FLAGS))
    if len(rest) > 1:
        _fail(f"unexpected argument {rest[1]!r}; every option is --name=value (see --help).")
    return rest


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(EXIT_CODE)


def _quiet_and_cached() -> None:
    """Set before the heavy imports: libraries speak up only for warnings; programs are kept.

    Compiled programs go to the user's cache folder, so that a second run starts at once; the
    standard JAX_COMPILATION_CACHE_DIR moves it, and an empty one switches it off. The small ones go
    there too, of which every start has dozens; JAX by itself leaves out what took under a second.
    """
    logging.set_verbosity(logging.WARNING)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(user_cache() / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def _speaks_any_encoding() -> None:
    """What stdout's encoding lacks (τ on a Windows console, all accents in ASCII) is escaped."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def run(main: Callable[[list[str]], None]) -> None:
    """Runs an entry point."""
    _quiet_and_cached()
    _speaks_any_encoding()
    with ends_quietly():
        app.run(report_user_errors(main), flags_parser=_parse)
