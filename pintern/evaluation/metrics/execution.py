"""SQL by what it returns."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pintern.errors import UserError
from pintern.evaluation.metrics.scores import Grade, grade_outcomes
from pintern.evaluation.results import MAX_PERMUTED_COLUMNS, RELATIVE_TOLERANCE
from pintern.evaluation.sql import Database, Table, execution_match
from pintern.prompts.task import Example


def grade_sql(
    predictions: Sequence[str], examples: Sequence[Example], options: Mapping[str, Any]
) -> Grade:
    """Equal results on SQLite.

    An example is about the database that its facts name: a file (`database`) or a `sql.Table`
    (`table`); else about the option `database`, one file for all examples or one for each.

    Raises:
      UserError: an example without a database, or a gold query that fails.
    """
    given = options.get("database")
    one = given is None or isinstance(given, Path | str)
    shared = [given] * len(examples) if one else given
    if len(shared) != len(examples):
        raise UserError(f"{len(shared)} databases for {len(examples)} gold queries.")
    databases = [
        _database_of(example) or common for example, common in zip(examples, shared, strict=True)
    ]
    if None in databases:
        raise UserError("Metric 'sql' needs a database.", "Name the task's SQLite file.")
    signature = (
        f"execution|sqlite:{sqlite3.sqlite_version}|rows:multiset,list-if-gold-orders"
        f"|columns:any-order-to-{MAX_PERMUTED_COLUMNS}|floats:{RELATIVE_TOLERANCE:g}"
    )
    outcomes = [
        execution_match(file, prediction, example.completion).reason
        for file, prediction, example in zip(databases, predictions, examples, strict=True)
    ]
    return grade_outcomes("sql", outcomes, signature)


def _database_of(example: Example) -> Database | None:
    """The database that an example's facts name; a user's facts may call other things a table."""
    table, file = example.facts.get("table"), example.facts.get("database")
    if isinstance(table, Table):
        return table
    if not isinstance(file, Path | str | None):
        raise UserError(
            f"facts.database of example {example.id or '(no id)'} is {file!r:.60}.",
            "Give the path of a SQLite file.",
        )
    return file or None
