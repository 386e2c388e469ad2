"""Execution accuracy on SQLite: two queries are the same if they return the same.

A predicted query is whatever a model wrote, so it runs read-only, behind an authorizer that permits
nothing but reading, and under limits of steps, time and size. The database's bytes can't change, no
other file can be reached, and a query that never ends is stopped and told apart from a wrong one.
"""

import contextlib
import dataclasses
import functools
import re
import sqlite3
import time
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from pintern.errors import UserError
from pintern.evaluation.results import Row, same_rows


@dataclasses.dataclass(frozen=True)
class Table:
    """A database of one table, held in memory while a query runs.

    Attributes:
      name: of the table.
      columns: name and declared type of each, e.g. `TEXT COLLATE NOCASE`.
      rows: values in the order of the columns.
    """

    name: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[object, ...], ...]


# A SQLite file, or one table.
Database = Path | str | Table

Reason = Literal["right", "mismatch", "error", "timeout", "refused"]

MAX_ROWS = 10_000
MAX_STEPS = 50_000_000
MAX_SECONDS = 2.0
STEPS_PER_CHECK = 100
# Some functions (trim, replace) cost the product of two lengths within a single step, where no
# limit can stop them: short values keep that product small.
MAX_VALUE_BYTES = 1 << 16
MAX_RESULT_BYTES = 1 << 24
MAX_SQL_BYTES = 20_000
MAX_PATTERN_BYTES = 200
# A gold query is trusted and runs once, so a busy machine mustn't fail the whole evaluation.
GOLD_SECONDS = 30.0
GOLD_CACHE = 4096

_READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE}
_REFUSED_FUNCTIONS = {"load_extension", "fts3_tokenizer"}
_WIDE_FORMAT = re.compile(r"\*|\d{4}")
_TOKEN = re.compile(
    r"""'(?:[^']|'')*' | "(?:[^"]|"")*" | `(?:[^`]|``)*` | \[[^\]]*\]
    | --[^\n]* | /\*.*?(?:\*/|$) | [()] | \w+""",
    re.VERBOSE | re.DOTALL,
)


class QueryFailed(Exception):  # noqa: N818 (an outcome to be counted, not a mistake of the code)
    """A query gave no result.

    Attributes:
      reason: `error` (not valid SQL here), `timeout` (past the limit of steps or seconds) or
        `refused` (not a single reading statement, or a result past the limits of size).
    """

    def __init__(self, reason: Literal["error", "timeout", "refused"], detail: str):
        super().__init__(detail)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether a predicted query is right, and why not; true exactly if it is right.

    Attributes:
      reason: `right`, `mismatch` (it ran, with another result), or the reason it failed.
      detail: SQLite's message or the limit that was met; empty otherwise.
    """

    reason: Reason
    detail: str = ""

    def __bool__(self) -> bool:
        return self.reason == "right"


def quote_name(name: str) -> str:
    """A table's or column's name as SQL writes it, whatever characters it has."""
    return '"' + name.replace('"', '""') + '"'


def run_query(
    database: Database,
    sql: str,
    *,
    max_rows: int = MAX_ROWS,
    max_steps: int = MAX_STEPS,
    max_seconds: float = MAX_SECONDS,
) -> list[Row]:
    """Rows that one reading query returns.

    Args:
      database: SQLite file, never written to, nor is anything beside it; or a table.
      sql: one SELECT, VALUES or WITH; table-valued functions such as `json_each` are refused.
      max_rows: a longer result is refused.
      max_steps: instructions of SQLite's virtual machine; the same on every machine.
      max_seconds: wall clock, checked every 100 instructions.

    Raises:
      QueryFailed: no result; says why.
      UserError: the database isn't there, or has changes that aren't in the file yet.
    """
    return _run(_existing(database), sql, max_rows, max_steps, max_seconds)[1]


def execution_match(database: Database, predicted: str, gold: str) -> Verdict:
    """Compares what two queries return, by the rules of `results.same_rows`.

    The order of rows matters only if the gold query orders its result itself (an ORDER BY outside
    all parentheses); rows that tie under that order are expected as the gold query returns them.
    Gold results are kept for the life of the process, as long as the file stays the same.

    Raises:
      UserError: the gold query fails, or the database isn't there.
    """
    source = _existing(database)
    status = source.stat() if isinstance(source, Path) else None
    version = (status.st_mtime_ns, status.st_size) if status else ()
    width, expected = _gold_result(source, version, gold)
    try:
        predicted_width, rows = _run(source, predicted)
    except QueryFailed as failure:
        return Verdict(failure.reason, str(failure))
    same = width == predicted_width and same_rows(rows, expected, ordered=has_order(gold))
    return Verdict("right" if same else "mismatch")


def has_order(sql: str) -> bool:
    """Whether a query orders its result: ORDER BY outside parentheses, strings and comments."""
    depth, before = 0, ""
    for match in _TOKEN.finditer(sql):
        token = match.group().lower()
        if token.startswith(("--", "/*")):
            continue
        if depth == 0 and (before, token) == ("order", "by"):
            return True
        depth += {"(": 1, ")": -1}.get(token, 0)
        before = token
    return False


@functools.lru_cache(maxsize=GOLD_CACHE)
def _gold_result(source: Path | bytes, version: tuple[int, ...], sql: str) -> tuple[int, list[Row]]:
    """Width and rows of a gold query; time and size of a file are there to key the cache."""
    try:
        return _run(source, sql, max_seconds=GOLD_SECONDS)
    except QueryFailed as failure:
        name = source.name if isinstance(source, Path) else "its own table"
        raise UserError(
            f"Gold query {sql!r} fails on {name}: {failure} ({failure.reason}).",
            "A gold query must be one SELECT that runs within the limits; mend or drop the record.",
        ) from failure


@functools.lru_cache(maxsize=GOLD_CACHE)
def _image(table: Table) -> bytes:
    """The bytes of a SQLite file that holds the table."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        declared = ", ".join(f"{quote_name(name)} {kind}" for name, kind in table.columns)
        connection.execute(f"CREATE TABLE {quote_name(table.name)} ({declared})")
        places = ", ".join("?" * len(table.columns))
        connection.executemany(
            f"INSERT INTO {quote_name(table.name)} VALUES ({places})", table.rows
        )
        connection.commit()
        return connection.serialize()


def _existing(database: Database) -> Path | bytes:
    """The database's path, once it is sure that the file alone holds all of it; a table's bytes."""
    if isinstance(database, Table):
        return _image(database)
    path = Path(database).absolute()
    if not path.is_file():
        raise UserError(
            f"No SQLite database at {database}.", "Check the record's db_id and the task's folder."
        )
    for suffix in ("-wal", "-journal"):
        beside = path.with_name(path.name + suffix)
        if beside.is_file() and beside.stat().st_size:
            raise UserError(
                f"{path.name} has unfinished changes in {beside.name}.",
                "Close the program that writes to it, or checkpoint it, and evaluate again.",
            )
    return path


def _run(
    source: Path | bytes,
    sql: str,
    max_rows: int = MAX_ROWS,
    max_steps: int = MAX_STEPS,
    max_seconds: float = MAX_SECONDS,
) -> tuple[int, list[Row]]:
    """Number of columns, and rows."""
    denied: list[str] = []

    def authorize(action: int, first: str | None, second: str | None, *_: str | None) -> int:
        function = action == sqlite3.SQLITE_FUNCTION
        if action in _READING or (function and second.lower() not in _REFUSED_FUNCTIONS):
            return sqlite3.SQLITE_OK
        denied.append(second if function else first or "statement")
        return sqlite3.SQLITE_DENY

    checks, deadline = 0, time.monotonic() + max_seconds

    def out_of_budget() -> bool:
        nonlocal checks
        checks += 1
        return checks * STEPS_PER_CHECK > max_steps or time.monotonic() > deadline

    with contextlib.closing(_connect(source)) as connection:
        connection.set_authorizer(authorize)
        connection.set_progress_handler(out_of_budget, STEPS_PER_CHECK)
        try:
            cursor = connection.execute(sql)
            if cursor.description is None:
                raise QueryFailed("error", "no query that returns rows")
            return len(cursor.description), _fetch(cursor, max_rows)
        except (sqlite3.Error, sqlite3.Warning, UnicodeEncodeError, MemoryError) as error:
            code = getattr(error, "sqlite_errorcode", None)
            message = str(error)
            if code == sqlite3.SQLITE_INTERRUPT:
                limit = "steps" if checks * STEPS_PER_CHECK > max_steps else "seconds"
                raise QueryFailed("timeout", f"stopped at the limit of {limit}") from error
            refused = denied or code == sqlite3.SQLITE_TOOBIG or "one statement" in message
            raise QueryFailed("refused" if refused else "error", message) from error


def _connect(source: Path | bytes) -> sqlite3.Connection:
    """A connection that can neither write nor lock, with every size limited."""
    if isinstance(source, bytes):
        connection = sqlite3.connect(":memory:", isolation_level=None)
        connection.deserialize(source)
    else:
        # `immutable` keeps SQLite from making a lock, -wal or -shm file beside the database.
        uri = f"file:{quote(str(source))}?mode=ro&immutable=1"
        connection = sqlite3.connect(uri, uri=True, isolation_level=None)
    for limit, value in (
        (sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES),
        (sqlite3.SQLITE_LIMIT_SQL_LENGTH, MAX_SQL_BYTES),
        (sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, MAX_PATTERN_BYTES),
        (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
    ):
        connection.setlimit(limit, value)
    # Real databases hold text in older encodings: bytes that aren't UTF-8 still compare as bytes.
    connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
    for name in ("printf", "format"):
        connection.create_function(name, -1, _printf)
    return connection


def _printf(*values: object) -> object:
    """SQLite's printf without huge widths: '%.*c' can spin for seconds within a single step."""
    if values and _WIDE_FORMAT.search(str(values[0])):
        raise ValueError("a width of four digits or more")
    with contextlib.closing(sqlite3.connect(":memory:")) as plain:
        query = f"SELECT printf({', '.join('?' * len(values))})"
        return plain.execute(query, values).fetchone()[0]


def _fetch(cursor: sqlite3.Cursor, max_rows: int) -> list[Row]:
    rows: list[Row] = []
    size = 0
    for row in cursor:
        size += sum(len(value) if isinstance(value, str | bytes) else 8 for value in row)
        if len(rows) == max_rows or size > MAX_RESULT_BYTES:
            limit = f"{max_rows} rows" if len(rows) == max_rows else f"{MAX_RESULT_BYTES} bytes"
            raise QueryFailed("refused", f"more than {limit}")
        rows.append(row)
    return rows
