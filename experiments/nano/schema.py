"""A random database schema with private names, and the prompt that explains it."""

import dataclasses
import random

from experiments.nano import vocabulary as words


@dataclasses.dataclass(frozen=True)
class Column:
    """One column: the everyday `word`, the private `code`, and what it holds."""

    word: str
    code: str
    kind: str  # number, text, date or state


@dataclasses.dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
      word: everyday plural noun.
      code: private name.
      columns: all but the join keys.
      states: everyday adjective to the number stored in the state column.
      metrics: everyday name to a formula over codes, e.g. `gat * rud`.
      left_out: adjective whose rows never count (a house rule), or None.
    """

    word: str
    code: str
    columns: tuple[Column, ...]
    states: tuple[tuple[str, int], ...] = ()
    metrics: tuple[tuple[str, str], ...] = ()
    left_out: str | None = None

    def of_kind(self, *kinds: str) -> list[Column]:
        """Columns of the given kinds, in order."""
        return [c for c in self.columns if c.kind in kinds]

    def condition(self, adjective: str, operator: str = "=") -> str:
        """SQL that says that a row is in the state which the adjective names."""
        (column,) = self.of_kind("state")
        return f"{column.code} {operator} {dict(self.states)[adjective]}"


@dataclasses.dataclass(frozen=True)
class Schema:
    """Tables, the joins between them, and how dates are stored.

    Attributes:
      tables: all tables.
      joins: `(child, parent, key)`: indices of two tables and the code of the column they share.
      date_format: `compact` (20210101), `dashed` ('2021-01-01') or `year` (2021).
    """

    tables: tuple[Table, ...]
    joins: tuple[tuple[int, int, str], ...]
    date_format: str = "compact"

    def date(self, year: int) -> str:
        """First day of a year as an SQL literal in this schema's convention."""
        return {"compact": f"{year}0101", "dashed": f"'{year}-01-01'", "year": f"{year}"}[
            self.date_format
        ]


def random_schema(rng: random.Random, tables: int, columns: int, *, extras: bool = True) -> Schema:
    """Draws a schema whose words and codes are all distinct.

    Args:
      rng: source of randomness.
      tables: number of tables.
      columns: columns of each, join keys not counted.
      extras: also draw states, metrics, house rules and dates.
    """
    codes = iter(rng.sample(words.CODES, tables * (columns + 2) + tables))
    numbers = iter(rng.sample(words.NUMBERS, len(words.NUMBERS)))
    texts = iter(rng.sample(list(words.TEXTS), len(words.TEXTS)))
    dates = iter(rng.sample(words.DATES, len(words.DATES)))
    state_columns = iter(rng.sample(words.STATE_COLUMNS, len(words.STATE_COLUMNS)))
    states = iter(rng.sample(words.STATES, len(words.STATES)))
    metrics = iter(rng.sample(words.METRICS, len(words.METRICS)))

    made = []
    for word in rng.sample(words.TABLES, tables):
        kinds = ["number", "text"]
        if extras and columns >= 4:
            kinds += [k for k in ("date", "state") if rng.random() < 0.6]
        kinds += ["number" if rng.random() < 0.65 else "text" for _ in range(columns - len(kinds))]
        rng.shuffle(kinds)
        pools = {"number": numbers, "text": texts, "date": dates, "state": state_columns}
        cols = []
        for kind in kinds[:columns]:
            name = next(pools[kind], None)
            if name is None:  # the pool of text words is small
                kind, name = "number", next(numbers)
            cols.append(Column(name, next(codes), kind))
        table = Table(word, next(codes), tuple(cols))
        if table.of_kind("state"):
            numbers_stored = rng.sample(words.STATE_CODES, rng.randint(2, 3))
            named = tuple((next(states, None), number) for number in numbers_stored)
            named = tuple((adjective, number) for adjective, number in named if adjective)
            left_out = named[0][0] if len(named) > 1 and rng.random() < 0.5 else None
            if named:
                table = dataclasses.replace(table, states=named, left_out=left_out)
        numeric = table.of_kind("number")
        if extras and len(numeric) >= 2 and rng.random() < 0.6:
            first, second = rng.sample(numeric, 2)
            formula = f"{first.code} {rng.choice('*-+')} {second.code}"
            table = dataclasses.replace(table, metrics=((next(metrics), formula),))
        made.append(table)

    joins = [(child, rng.randrange(child), next(codes)) for child in range(1, tables)]
    rng.shuffle(made)
    return Schema(tuple(made), tuple(joins), rng.choice(["compact", "dashed", "year"]))


def render_template(schema: Schema, rng: random.Random | None = None) -> str:
    """The prompt that explains a schema. `rng` varies its wording; None takes the first wording."""

    def pick(*wordings: str) -> str:
        return rng.choice(wordings) if rng else wordings[0]

    link = pick(" is ", " ", " = ", ": ")
    lines = [
        pick(
            "Answer each question about our database with one SQLite query.",
            "Write one SQLite query for the question.",
            "You translate questions to SQL.",
        )
    ]
    for table in schema.tables:
        columns = ", ".join(f"{c.word}{link}{c.code}" for c in table.columns)
        lines.append(pick("Table ", "") + f"{table.word} is {table.code} with {columns}.")
    for child, parent, key in schema.joins:
        a, b = schema.tables[child], schema.tables[parent]
        lines.append(f"{a.word} join {b.word} on {key}.")
    for table in schema.tables:
        if table.states:
            codes = ", ".join(f"{adjective}{link}{number}" for adjective, number in table.states)
            lines.append(f"{table.of_kind('state')[0].word} codes of {table.word}: {codes}.")
        for name, formula in table.metrics:
            lines.append(f"{name}{link}{formula}.")
        if table.left_out:
            lines.append(
                f"{table.left_out} {table.word} never count: from {table.code} always keep "
                f"{table.condition(table.left_out, '<>')}."
            )
    if any(table.of_kind("date") for table in schema.tables):
        lines.append(f"Dates are stored like {schema.date(2020)}.")
    return "\n".join(lines) + "\n"
