"""A company's rows: drawn from a seed, stored in SQLite under the private names."""

import random
import sqlite3
from pathlib import Path
from typing import Any

from experiments.company.schema import COMPANY
from experiments.nano import vocabulary as words
from experiments.nano.questions import Values
from experiments.nano.schema import Column, Schema, Table

# Of the embedded company; another schema's tables and columns take the defaults below.
ROWS = {"customers": 70, "orders": 160, "rentals": 160, "bikes": 90, "stations": 60}
# Lowest and highest value of each numeric column. A range holds more integers than the table has
# rows: values never repeat within a column, so that "the 3 with the highest price" has one answer.
RANGES = {
    "age": (16, 95),
    "points": (1, 400),
    "bonus": (1, 350),
    "credits": (1, 300),
    "price": (10, 900),
    "quantity": (1, 240),
    "discount": (1, 300),
    "hours": (1, 240),
    "fee": (2, 400),
    "distance": (1, 600),
    "cost": (1, 500),
    "weight": (5, 250),
    "speed": (10, 200),
    "size": (10, 300),
    "capacity": (5, 150),
    "income": (100, 990),
    "rent": (50, 700),
    "area": (10, 400),
    "seats": (1, 120),
}
DEFAULT_ROWS, DEFAULT_RANGE = 80, (1, 400)

Rows = dict[str, dict[str, list[Any]]]
"""Values by code of the table, then by code of the column."""


def _column(schema: Schema, table: Table, column: Column, rng: random.Random) -> list[Any]:
    count = _count(schema, table)
    if column.kind == "number":
        low, high = RANGES[column.word] if schema is COMPANY else DEFAULT_RANGE
        # The round numbers that questions mention come first, so that "exactly 40" finds a row.
        round_values = [v for v in words.NUMBER_VALUES if low <= v <= high]
        others = [v for v in range(low, high + 1) if v not in round_values]
        values = round_values + rng.sample(others, count - len(round_values))
        rng.shuffle(values)
        return values
    if column.kind == "text":
        return [rng.choice(words.TEXTS[column.word]) for _ in range(count)]
    if column.kind == "flag":
        return [int(rng.random() < 0.4) for _ in range(count)]
    if schema.date_format == "year":
        return [rng.choice(words.YEARS) for _ in range(count)]
    return [
        rng.choice(words.YEARS) * 10000 + rng.randint(1, 12) * 100 + rng.randint(1, 28)
        for _ in range(count)
    ]


def _count(schema: Schema, table: Table) -> int:
    return ROWS[table.word] if schema is COMPANY else DEFAULT_ROWS


def make_rows(seed: int, schema: Schema = COMPANY) -> Rows:
    """Every table's values. The join key numbers the hub's rows; other tables point at them.

    Args:
      seed: the same seed gives the same rows.
      schema: whose tables.
    """
    rng = random.Random(seed)
    rows: Rows = {
        table.code: {column.code: _column(schema, table, column, rng) for column in table.columns}
        for table in schema.tables
    }
    for child, parent, key in schema.joins:
        mine, hub = schema.tables[child], schema.tables[parent]
        numbers = range(1, _count(schema, hub) + 1)
        rows[hub.code][key] = list(numbers)
        rows[mine.code][key] = [rng.choice(numbers) for _ in range(_count(schema, mine))]
    return rows


def write_database(path: Path, rows: Rows, schema: Schema = COMPANY) -> None:
    """Writes an SQLite file, over one that is there; equal rows and SQLite give equal bytes."""
    path.unlink(missing_ok=True)
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA page_size = 4096")
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("BEGIN")
        fill(connection, rows, schema)
        connection.execute("COMMIT")
        connection.execute("VACUUM")
    finally:
        connection.close()


def fill(connection: sqlite3.Connection, rows: Rows, schema: Schema = COMPANY) -> None:
    """Creates a company's tables and inserts the rows."""
    texts = {c.code for t in schema.tables for c in t.of_kind("text")}
    for table, columns in rows.items():
        types = ", ".join(f"{c} {'TEXT' if c in texts else 'INTEGER'}" for c in columns)
        connection.execute(f"CREATE TABLE {table} ({types})")
        marks = ", ".join("?" for _ in columns)
        connection.executemany(
            f"INSERT INTO {table} VALUES ({marks})", zip(*columns.values(), strict=True)
        )


class RowValues(Values):
    """Literals that occur in the rows, so that conditions select some rows and leave some out."""

    def __init__(self, rows: Rows):
        self.columns = {code: values for table in rows.values() for code, values in table.items()}

    def number(self, column: Column, rng: random.Random) -> int:
        """A round number of the column, from its middle eight tenths."""
        ordered = sorted(self.columns[column.code])
        tenth = len(ordered) // 10
        return rng.choice([v for v in ordered[tenth:-tenth] if v in words.NUMBER_VALUES])

    def text(self, column: Column, rng: random.Random) -> str:
        """A value of a row."""
        return rng.choice(self.columns[column.code])

    def year(self, rng: random.Random) -> int:
        """A year that leaves rows on both sides."""
        return rng.choice(words.YEARS[1:])
