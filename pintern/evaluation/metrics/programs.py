"""Programs by whether they pass their tests, run in the sandbox."""

from __future__ import annotations

import ast
import platform
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from pintern.errors import UserError
from pintern.evaluation.metrics.scores import Grade, grade_outcomes
from pintern.evaluation.sandbox.runner import Limits, Problem, protections, run_programs
from pintern.prompts.task import Example

_FENCE = re.compile(r"```(?:python3?|py)?[ \t\r]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)


def grade_pass(
    predictions: Sequence[str], examples: Sequence[Example], options: Mapping[str, Any]
) -> Grade:
    """Every test passes; an example's facts are the fields of `sandbox.runner.Problem`.

    With one sample per example the mean is pass@1. Options: `end`, what closes a program in an
    answer; `unconfined`, run programs even where the kernel can't confine them.

    Raises:
      UserError: the kernel can't confine them, and `unconfined` isn't given; or an example has no
        tests, doesn't say which names they use, or has what is no Python.
    """
    end, unconfined = options.get("end", ""), bool(options.get("unconfined", False))
    problems = [problem_of(example) for example in examples]
    limits = Limits()
    inside = "none" if unconfined else "+".join(protections())
    programs = [program_of(prediction, end) for prediction in predictions]
    verdicts = run_programs(programs, problems, limits=limits, unconfined=unconfined)
    signature = (
        f"pass|tests:all|answer:{f'to-{end}-' if end else ''}first-fence|sandbox:{inside}"
        f"|cpu:{limits.cpu_seconds}s|wall:{limits.wall_seconds:g}s"
        f"|memory:{limits.memory_bytes >> 20}MiB|python:{platform.python_version()}"
    )
    return grade_outcomes("pass", [verdict.reason for verdict in verdicts], signature)


def program_of(answer: str, end: str = "") -> str:
    """The program in a model's answer: what stands before `end`, or its first fenced block."""
    if end:
        answer = answer.partition(end)[0]
    fenced = _FENCE.search(answer)
    return fenced.group(1) if fenced else answer


def problem_of(example: Example) -> Problem:
    """What an example's program is judged by.

    Raises:
      UserError: the example has no tests, doesn't say which names they use, or has what is no
        Python.
    """
    facts = example.facts
    for field in ("tests", "names"):
        if not facts.get(field):
            raise UserError(
                f"Metric 'pass' needs the tests of every example, and the names of the program's "
                f"that they use; {example.id or 'one'} has no facts.{field}.",
                "Use a task of kind 'mbpp', or give each example facts.tests and facts.names.",
            )
        if isinstance(facts[field], str):
            raise UserError(
                f"facts.{field} of example {example.id or '(no id)'} is a text; expected a list.",
                f"Write {[facts[field]]!r:.80}.",
            )
    imports, setup = facts.get("imports") or "", facts.get("setup") or ""
    try:
        problem = Problem(tuple(facts["tests"]), tuple(facts["names"]), imports, setup)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of regular expressions that aren't raw strings
            for source in (*problem.tests, "\n".join(problem.names), imports, setup):
                ast.parse(source)
    except (SyntaxError, TypeError, ValueError) as error:
        raise UserError(
            f"What example {example.id or '(no id)'} is judged by can't be run: {error}.",
            "Of its facts, tests and names are lists of Python text, imports and setup a text.",
        ) from error
    return problem
