"""The company's rows: drawn from a seed, stored in SQLite under the private names."""

import random
import sqlite3
from pathlib import Path
from typing import Any

from experiments.company.schema import COMPANY
from experiments.nano import vocabulary as words
from experiments.nano.questions import Values
from experiments.nano.schema import Column, Table

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

Rows = dict[str, dict[str, list[Any]]]
"""Values by code of the table, then by code of the column."""


def _column(table: Table, column: Column, rng: random.Random) -> list[Any]:
    count = ROWS[table.word]
    if column.kind == "number":
        low, high = RANGES[column.word]
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
    # COMPANY stores dates compactly, e.g. 20200101.
    return [
        rng.choice(words.YEARS) * 10000 + rng.randint(1, 12) * 100 + rng.randint(1, 28)
        for _ in range(count)
    ]


def make_rows(seed: int) -> Rows:
    """Every table's values. The join key numbers the hub's rows; other tables point at them.

    Args:
      seed: the same seed gives the same rows.
    """
    rng = random.Random(seed)
    rows: Rows = {
        table.code: {column.code: _column(table, column, rng) for column in table.columns}
        for table in COMPANY.tables
    }
    for child, parent, key in COMPANY.joins:
        mine, hub = COMPANY.tables[child], COMPANY.tables[parent]
        numbers = range(1, ROWS[hub.word] + 1)
        rows[hub.code][key] = list(numbers)
        rows[mine.code][key] = [rng.choice(numbers) for _ in range(ROWS[mine.word])]
    return rows


def write_database(path: Path, rows: Rows) -> None:
    """Writes an SQLite file, over one that is there; equal rows and SQLite give equal bytes."""
    path.unlink(missing_ok=True)
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA page_size = 4096")
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("BEGIN")
        fill(connection, rows)
        connection.execute("COMMIT")
        connection.execute("VACUUM")
    finally:
        connection.close()


def fill(connection: sqlite3.Connection, rows: Rows) -> None:
    """Creates the company's tables and inserts the rows."""
    texts = {c.code for t in COMPANY.tables for c in t.of_kind("text")}
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
