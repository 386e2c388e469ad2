"""SQL by its clauses: Spider's exact set match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pintern.errors import UserError
from pintern.evaluation.metrics.scores import Grade, grade_outcomes
from pintern.evaluation.sql_clauses import Schema, clauses_match
from pintern.prompts.task import Example


def grade_clauses(
    predictions: Sequence[str], examples: Sequence[Example], options: Mapping[str, Any]
) -> Grade:
    """The same clauses; an example's facts hold `schema`: its `tables` and `foreign_keys`.

    Raises:
      UserError: an example without a schema, or a gold query that can't be read.
    """
    import sqlglot

    schemas: dict[int, Schema] = {}
    outcomes = []
    for prediction, example in zip(predictions, examples, strict=True):
        given = example.facts.get("schema")
        if given is None:
            raise UserError(
                f"Metric 'clauses' needs each example's schema; {example.id or 'one'} has none.",
                "Use a task of kind 'spider', or give each example facts.schema.",
            )
        if id(given) not in schemas:
            schemas[id(given)] = _schema(given, example)
        outcomes.append(clauses_match(schemas[id(given)], prediction, example.completion))
    signature = (
        "exact-set-match|values:off|distinct:off|foreign-keys:on|group-by:in-order"
        f"|sqlglot:{sqlglot.__version__}"
    )
    return grade_outcomes("clauses", outcomes, signature)


def _schema(given: Any, example: Example) -> Schema:
    try:
        return Schema(
            tuple((name, tuple(columns)) for name, columns in given["tables"].items()),
            tuple((a, b) for a, b in given["foreign_keys"]),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"facts.schema of example {example.id or '(no id)'} is {given!r:.60}.",
            'Expected {"tables": {table: [column, …]}, "foreign_keys": [[column, column], …]}.',
        ) from error
