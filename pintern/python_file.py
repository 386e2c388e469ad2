"""Python files that a flag names (experiments, studies): what is wrong in them is told by line."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from pintern.errors import UserError


def load_file(given: str, *, flag: str) -> ModuleType:
    """The module of `FILE`, or of `FILE:ARGUMENT`.

    Args:
      given: the flag's value.
      flag: its name, for messages.

    Raises:
      UserError: no such file, no Python file, or whatever it raises, with its line.
    """
    path = Path(given.partition(":")[0])
    if not path.is_file():
        raise UserError(
            f"--{flag}={path if given else ''}: there is no such file.", "Name one: FILE.py."
        )
    spec = importlib.util.spec_from_file_location(f"pintern_{flag}_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--{flag}={path} is no Python file.", "Its name should end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses of the file look their module up
    with _told(path, f"--{flag}={given}"):
        spec.loader.exec_module(module)
    return module


def call_in_file(given: str, function: str, *, flag: str, mend: str) -> Any:
    """What a function of the file returns; of `FILE:ARGUMENT` it is given the argument.

    Args:
      given: the flag's value.
      function: its name.
      flag: the flag's name, for messages.
      mend: what the file should hold.

    Raises:
      UserError: see `load_file`; or the file has no such function.
    """
    module = load_file(given, flag=flag)
    file, _, argument = given.partition(":")
    if not callable(getattr(module, function, None)):
        raise UserError(f"--{flag}={file} has no {function}().", mend)
    with _told(Path(file), f"--{flag}={given}"):
        return getattr(module, function)(*([argument] if argument else []))


@contextmanager
def _told(path: Path, given: str) -> Iterator[None]:
    """Tells what the file raises by the line in it that led there."""
    try:
        yield
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"{error.filename}, line {error.lineno}: {error.msg}.") from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [each.lineno for each in frames if Path(each.filename) == path.absolute()]
        where = f"{path}, line {lines[-1]}" if lines else given
        said = " ".join(str(error).split()).rstrip(".")
        mend = ["Run it from the repository's root, with what it imports installed."]
        raise UserError(
            f"{where}: {type(error).__name__}: {said}.",
            *(mend if isinstance(error, ImportError) else []),
        ) from error
