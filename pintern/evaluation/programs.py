"""Programs scored by running their tests in the sandbox: the metric `pass`."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pintern.errors import UserError
from pintern.evaluation.sandbox.runner import Limits, Problem, protections, run_programs

_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


def program_of(answer: str, end: str = "") -> str:
    """The program in a model's answer: what stands before `end`, or its first fenced block."""
    if end:
        answer = answer.partition(end)[0]
    fenced = _FENCE.search(answer)
    return fenced.group(1) if fenced else answer


def program_outcomes(
    answers: Sequence[str],
    facts: Sequence[Mapping[str, Any]],
    *,
    end: str = "",
    unconfined: bool = False,
    limits: Limits | None = None,
) -> tuple[list[str], str]:
    """How each program ended (see `sandbox.runner.Verdict`), and how that was found.

    Args:
      answers: a model's, see `program_of`.
      facts: for each answer, the fields of `sandbox.runner.Problem`.
      end: see `program_of`.
      unconfined: run them even where the kernel can't confine them.
      limits: of each program.

    Raises:
      UserError: the kernel can't confine them, and `unconfined` isn't given; or an example has no
        tests.
    """
    limits = limits or Limits()
    inside = "none" if unconfined else "+".join(protections())
    verdicts = run_programs(
        [program_of(answer, end) for answer in answers],
        [_problem(fact) for fact in facts],
        limits=limits,
        unconfined=unconfined,
    )
    signature = (
        f"pass|tests:all|answer:{f'to-{end}-' if end else ''}first-fence|sandbox:{inside}"
        f"|cpu:{limits.cpu_seconds}s|wall:{limits.wall_seconds:g}s"
        f"|memory:{limits.memory_bytes >> 20}MiB|python:{platform.python_version()}"
    )
    return [verdict.reason for verdict in verdicts], signature


def _problem(facts: Mapping[str, Any]) -> Problem:
    if not facts.get("tests"):
        raise UserError(
            "Metric 'pass' needs the tests of every example, and one has none.",
            "Use a task of kind 'mbpp', or give each example facts.tests and facts.names.",
        )
    return Problem(
        tests=tuple(facts["tests"]),
        names=tuple(facts.get("names", ())),
        imports=facts.get("imports", ""),
        setup=facts.get("setup", ""),
    )
