"""Reads a study file: Python with a `get_study()`."""

from __future__ import annotations

from pintern.errors import UserError
from pintern.python_file import call_in_file
from pintern.studies.study import Study


def load_study(given: str) -> Study:
    """The study of `FILE`, or of `FILE:ARGUMENT`, which is given to `get_study`.

    Raises:
      UserError: no such file, a mistake in it, or a `get_study` that returns something else.
    """
    mend = "It should return a Study; see pintern/studies/study.py."
    study = call_in_file(given, "get_study", flag="study", mend=mend)
    if not isinstance(study, Study):
        raise UserError(
            f"--study={given}: get_study() returned a {type(study).__name__}.",
            "It should return a pintern.studies.study.Study.",
        )
    return study
