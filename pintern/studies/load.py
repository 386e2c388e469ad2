"""Reads a study file: Python with a `get_study()`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from pintern.errors import UserError
from pintern.studies.study import Study


def load_study(name: str) -> Study:
    """The study of `FILE`, or of `FILE:ARGUMENT`, which is given to `get_study`.

    Raises:
      UserError: no such file, one without `get_study`, or one that returns something else.
    """
    file, _, argument = name.partition(":")
    path = Path(file)
    if not path.is_file():
        raise UserError(f"--study={file}: there is no such file.")
    spec = importlib.util.spec_from_file_location(f"pintern_study_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--study={file} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses of the file look their module up
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"{error.filename}, line {error.lineno}: {error.msg}.") from error
    except ImportError as error:
        raise UserError(
            f"--study={file}: {error}.", "Run it from the repository's root, as python -m does."
        ) from error
    if not hasattr(module, "get_study"):
        raise UserError(f"--study={file} has no get_study().", "See pintern/studies/study.py.")
    study = module.get_study(argument) if argument else module.get_study()
    if not isinstance(study, Study):
        raise UserError(
            f"get_study() of {file} returned a {type(study).__name__}.",
            "It should return a pintern.studies.study.Study.",
        )
    return study
