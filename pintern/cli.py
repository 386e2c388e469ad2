"""How every entry point starts: flags in, one clear message out when something is wrong."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from absl import app, flags, logging

from pintern.endings import ends_quietly
from pintern.errors import EXIT_CODE, UserError, report_user_errors
from pintern.paths import user_cache

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def define_config() -> None:
    """Defines `--config`: an experiment file, with `--config.<field>=` to override."""
    from ml_collections import config_flags

    config_flags.DEFINE_config_file(
        "config",
        None,
        "Experiment file with get_config(); override single fields with --config.<field>=<value>.",
    )


def config_from_flags() -> ConfigDict:
    """The checked config that the flags name; the default one without `--config`."""
    from pintern.config import default_config, validate

    return validate(flags.FLAGS.config or default_config())


def _parse(argv: list[str]) -> list[str]:
    """Parses flags; what is wrong with them is told without a traceback."""
    for argument, following in itertools.zip_longest(argv[1:], argv[2:], fillvalue=""):
        name, _, value = argument.partition("=")
        if name == "--config":
            path = Path((value or following).split(":")[0])
            if not path.is_file():
                _fail(f"--config={path}: there is no such file.")
    try:
        rest = flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        message = str(error.args[0] if error.args else error).strip().splitlines()[0]
        _fail(f"{message} (see --help)")
    except UserError as error:
        _fail(str(error))
    except SyntaxError as error:
        _fail(f"{error.filename}, line {error.lineno}: {error.msg}.")
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


def run(main: Callable[[list[str]], None]) -> None:
    """Runs an entry point."""
    _quiet_and_cached()
    with ends_quietly():
        app.run(
            report_user_errors(main),
            flags_parser=lambda argv: (
                app.parse_flags_with_usage(argv)
                if any(a in ("--help", "-h", "--helpfull", "--helpshort", "-?") for a in argv)
                else _parse(argv)
            ),
        )
