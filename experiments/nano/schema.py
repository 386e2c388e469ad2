"""A random database schema with private names, and the prompt that explains it."""

import dataclasses
import random

from experiments.nano import vocabulary as words

RULES = (
    "Write one statement with no comment and no semicolon.",
    "Use only tables and columns that are listed here.",
    "Text stands in single quotes as it is written in the question.",
    "Average and mean are AVG, total and overall are SUM.",
    "Highest and largest are MAX, lowest and smallest are MIN.",
    "Above and over mean more, below and under mean less.",
    "At least and at most include the number itself.",
    "Since a year includes its first day, before a year does not.",
    "How many and number of ask for COUNT.",
    "Per and for each ask for GROUP BY.",
    "The few with the highest or lowest ask for ORDER BY and LIMIT.",
    "Two tables are joined by JOIN and USING.",
)
"""What a prompt says about SQL whatever the schema."""


@dataclasses.dataclass(frozen=True)
class Column:
    """One column: the everyday `word`, the private `code`, and what it holds."""

    word: str
    code: str
    kind: str  # number, text, date or flag


@dataclasses.dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
      word: everyday plural noun.
      code: private name.
      columns: all but the join keys; a flag's word is the adjective that it stands for.
      metrics: everyday name to a formula over codes, e.g. `gat * rud`, or, where rows with a flag
        don't count, `gat * rud * ( 1 - zer )`.
    """

    word: str
    code: str
    columns: tuple[Column, ...]
    metrics: tuple[tuple[str, str], ...] = ()

    def of_kind(self, *kinds: str) -> list[Column]:
        """Columns of the given kinds, in order."""
        return [c for c in self.columns if c.kind in kinds]


@dataclasses.dataclass(frozen=True)
class Schema:
    """Tables, the joins between them, and how dates are stored.

    Attributes:
      tables: all tables.
      joins: `(child, parent, key)`: indices of two tables and the code of the column they share.
      date_format: `compact` (20210101) or `year` (2021).
    """

    tables: tuple[Table, ...]
    joins: tuple[tuple[int, int, str], ...]
    date_format: str = "compact"

    def date(self, year: int) -> str:
        """First day of a year as an SQL literal in this schema's convention."""
        return {"compact": f"{year}0101", "year": f"{year}"}[self.date_format]


def random_schema(rng: random.Random, tables: int, columns: int, *, extras: bool = True) -> Schema:
    """Draws a schema whose words and codes are all distinct.

    Args:
      rng: source of randomness.
      tables: number of tables.
      columns: columns of each, join keys not counted.
      extras: also draw flags, metrics and dates.
    """
    codes = iter(rng.sample(words.CODES, tables * (columns + 2) + tables))
    numbers = iter(rng.sample(words.NUMBERS, len(words.NUMBERS)))
    texts = iter(rng.sample(list(words.TEXTS), len(words.TEXTS)))
    dates = iter(rng.sample(words.DATES, len(words.DATES)))
    flags = iter(rng.sample(words.FLAGS, len(words.FLAGS)))
    metrics = iter(rng.sample(words.METRICS, len(words.METRICS)))

    made = []
    for word in rng.sample(words.TABLES, tables):
        kinds = ["number", "text"]
        if extras and columns >= 4:
            kinds += ["date"] * (rng.random() < 0.5) + ["flag"] * rng.choice([0, 1, 1, 2])
        kinds += ["number" if rng.random() < 0.65 else "text" for _ in range(columns - len(kinds))]
        rng.shuffle(kinds)
        pools = {"number": numbers, "text": texts, "date": dates, "flag": flags}
        cols = []
        for kind in kinds[:columns]:
            name = next(pools[kind], None)
            if name is None:  # the pools of texts, dates and flags are small
                kind, name = "number", next(numbers)
            cols.append(Column(name, next(codes), kind))
        table = Table(word, next(codes), tuple(cols))
        numeric = table.of_kind("number")
        if extras and len(numeric) >= 2:
            found = [_formula(table, rng) for _ in range(rng.choice([0, 1, 1, 2]))]
            named = tuple((next(metrics), formula) for formula in dict.fromkeys(found))
            table = dataclasses.replace(table, metrics=named)
        made.append(table)

    hub, key = rng.randrange(tables), next(codes)
    joins = [(child, hub, key) for child in range(tables) if child != hub]
    return Schema(tuple(made), tuple(joins), rng.choice(["compact", "year"]))


def _formula(table: Table, rng: random.Random) -> str:
    """Two numeric columns, and perhaps a house rule: rows with a flag don't count."""
    first, second = rng.sample(table.of_kind("number"), 2)
    flagged = table.of_kind("flag")
    if flagged and rng.random() < 0.4:
        return f"{first.code} * {second.code} * ( 1 - {flagged[0].code} )"
    return f"{first.code} {rng.choice('*-+')} {second.code}"


def render_template(
    schema: Schema, rng: random.Random | None = None, *, rules: tuple[str, ...] = RULES
) -> str:
    """The prompt that explains a schema.

    Args:
      schema: what it explains.
      rng: varies the wording; None takes the first wording of everything.
      rules: sentences that follow the instruction.
    """

    def pick(*wordings: str) -> str:
        return rng.choice(wordings) if rng else wordings[0]

    link = pick(" is ", " ", " = ", ": ")
    lines = [
        pick(
            "Answer each question about our database with one SQLite query.",
            "Write one SQLite query for the question.",
            "You translate questions to SQL.",
        ),
        *rules,
    ]
    for table in schema.tables:
        columns = ", ".join(f"{c.word}{link}{c.code}" for c in table.columns)
        lines.append(pick("Table ", "") + f"{table.word} is {table.code} with {columns}.")
    for child, parent, key in schema.joins:
        a, b = schema.tables[child], schema.tables[parent]
        lines.append(f"{a.word} join {b.word} on {key}.")
    for table in schema.tables:
        for name, formula in table.metrics:
            lines.append(f"Metric {name}{link}{formula}.")
    if any(table.of_kind("flag") for table in schema.tables):
        lines.append("Flags hold 1 for yes and 0 for no.")
    if any(table.of_kind("date") for table in schema.tables):
        lines.append(f"Dates are stored like {schema.date(2020)}.")
    return "\n".join(lines) + "\n"
