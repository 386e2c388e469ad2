"""WikiSQL's queries as SQL, and rows for a table of which only the questions are known.

The rows are a test in the sense of test-suite accuracy (Zhong, Yu and Klein, 2020, 2010.02840): for
each question some that meet all its conditions, and for each condition some that meet all but that
one. Free cells differ, so that another column, aggregate, operator or value gives another result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from pintern.evaluation.sql import Table, quote_name

NAME = "t"
WITNESSES = 3  # rows that meet all conditions: enough for all aggregates to differ
_DECLARED = {"real": "REAL", "text": "TEXT COLLATE NOCASE"}
_HOLDS: dict[str, Callable[[object, object], bool]] = {
    "=": lambda a, b: a == b,
    ">": lambda a, b: a > b,
    "<": lambda a, b: a < b,
}


@dataclasses.dataclass(frozen=True)
class Condition:
    """`column operator value`, the value as the question has it; the operator is =, > or <."""

    column: str
    operator: str
    value: str


@dataclasses.dataclass(frozen=True)
class Question:
    """One question with its logical form.

    Attributes:
      text: the question.
      table: id of its table.
      aggregate: MAX, MIN, COUNT, SUM, AVG or nothing.
      select: the column.
      conditions: all of which must hold.
    """

    text: str
    table: str
    aggregate: str
    select: str
    conditions: tuple[Condition, ...]


def table_of(columns: Sequence[tuple[str, str]], rows: Iterable[Sequence[object]]) -> Table:
    """A table, from names and kinds (`real` or `text`) of its columns, and its rows.

    Text compares without regard to the case of ASCII letters; WikiSQL's own script knows the case
    of others as well.

    Raises:
      ValueError: a row of another length than the columns.
    """
    kinds = [kind for _, kind in columns]
    return Table(
        NAME,
        tuple((name, _DECLARED[kind]) for name, kind in columns),
        tuple(tuple(_cell(*pair) for pair in zip(kinds, row, strict=True)) for row in rows),
    )


def kinds_of(table: Table) -> list[tuple[str, str]]:
    """Names and kinds of a table's columns."""
    return [(name, declared.split()[0].lower()) for name, declared in table.columns]


def sql_of(question: Question, table: Table) -> str:
    """The question's logical form as SQL on its table."""
    kinds = dict(kinds_of(table))
    select = quote_name(question.select)
    if question.aggregate:
        select = f"{question.aggregate}({select})"
    conditions = [
        f"{quote_name(c.column)} {c.operator} {_literal(_cell(kinds[c.column], c.value))}"
        for c in question.conditions
    ]
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    return f"SELECT {select} FROM {NAME}{where}"


def make_table(questions: Sequence[Question]) -> Table:
    """A table of the columns that the questions name, with rows made from their conditions.

    The same questions in the same order give the same table.
    """
    names = list(
        dict.fromkeys(
            name for q in questions for name in (q.select, *(c.column for c in q.conditions))
        )
    )
    kinds = {name: _kind(name, questions) for name in names}
    columns = list(kinds.items())
    rows: list[list[object]] = []
    for question in questions:
        met = [(c, _cell(kinds[c.column], c.value)) for c in question.conditions]
        for witness in range(WITNESSES):
            rows.append(_witness(columns, met, len(rows), witness))
        for condition, value in met:
            # Twice each: free cells of odd and of even rows lie on both sides of all others.
            for missing in 2 * _near_misses(condition.operator, value):
                row = _witness(columns, met, len(rows), 0)
                place = names.index(condition.column)
                row[place] = _free(columns[place], place, len(rows)) if missing is None else missing
                rows.append(row)
    return table_of(columns, rows)


def _kind(name: str, questions: Sequence[Question]) -> str:
    values = [c.value for q in questions for c in q.conditions if c.column == name]
    if any(_number(value) is None for value in values):
        return "text"
    counted = any(q.select == name and q.aggregate not in ("", "COUNT") for q in questions)
    return "real" if values or counted else "text"


def _witness(
    columns: Sequence[tuple[str, str]],
    met: Sequence[tuple[Condition, object]],
    number: int,
    witness: int,
) -> list[object]:
    """A row that meets every condition, where they can be met at all."""
    row: list[object] = []
    for place, column in enumerate(columns):
        own = [(c.operator, value) for c, value in met if c.column == column[0]]
        if not own:
            row.append(_free(column, place, number))
            continue
        fitting = sorted(
            candidate
            for candidate in set(_candidates(own))
            if all(_HOLDS[operator](_key(candidate), _key(value)) for operator, value in own)
        )
        # The least and the greatest first, which lie at the bounds.
        chosen = (0, -1, len(fitting) // 2)[witness % WITNESSES]
        row.append(fitting[chosen] if fitting else _free(column, place, number))
    return row


def _candidates(own: Sequence[tuple[str, object]]) -> list[object]:
    """Values around those that a column is compared with."""
    found: list[object] = []
    for operator, value in own:
        if operator == "=":
            found.append(value)
        elif isinstance(value, str):
            found += [value + "~" * n for n in (1, 2, 3)] if operator == ">" else ["", " ", "!"]
        else:
            found += [value + n if operator == ">" else value - n for n in (1, 2, 3)]
    bounds = sorted(value for _, value in own if isinstance(value, float))
    if len(bounds) > 1:
        found += [bounds[0] + (bounds[-1] - bounds[0]) * share for share in (0.25, 0.5, 0.75)]
    return found


def _near_misses(operator: str, value: object) -> list[object]:
    """Values that just fail a condition; None is any other."""
    if isinstance(value, str):
        return [None] if operator == "=" else [value]
    steps = {"=": (-1, 1), ">": (0, -1), "<": (0, 1)}
    return [value + step for step in steps[operator]]


def _free(column: tuple[str, str], place: int, number: int) -> object:
    """A cell that no condition binds: another one in every row and column."""
    name, kind = column
    if kind == "text":
        return f"{name} {number}"
    away = 97 * (number + 1) * (place + 2) + number * number
    return float(100_000 + 13 * place + (away if number % 2 else -away))


def _key(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _cell(kind: str, value: object) -> object:
    """A value as a column of a kind holds it: a number only where all of it is one."""
    number = _number(value) if kind == "real" else None
    return str(value) if number is None else number


def _number(value: object) -> float | None:
    try:
        found = float(str(value).replace(",", ""))
    except ValueError:
        return None
    return found if abs(found) < 1e15 else None


def _literal(value: object) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(int(value)) if value == int(value) else repr(value)
