"""Execution accuracy: nothing a model writes can do harm, hang, or be scored wrongly."""

import json
import sqlite3
import time
from pathlib import Path

import pytest

from pintern.errors import UserError
from pintern.evaluation.sql import QueryFailed, execution_match, has_order, run_query

SPIDER = Path(__file__).parents[1] / ".." / "shared" / "data" / "spider"


@pytest.fixture
def database(tmp_path):
    path = tmp_path / "staff of 100%?.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript("""
        CREATE TABLE staff (id INTEGER PRIMARY KEY, name TEXT, pay REAL, team TEXT);
        CREATE INDEX by_team ON staff (team);
    """)
    rows = [(i, f"n{i}", 100.1 * (i % 7), None if i % 5 == 0 else f"t{i % 3}") for i in range(300)]
    connection.executemany("INSERT INTO staff VALUES (?, ?, ?, ?)", rows)
    connection.commit()
    connection.close()
    return path


def reason_of(database, sql, **limits):
    with pytest.raises(QueryFailed) as caught:
        run_query(database, sql, **limits)
    return caught.value.reason


@pytest.mark.parametrize(
    "sql",
    [
        "DROP TABLE staff",
        "DELETE FROM staff",
        "WITH r AS (SELECT 1) DELETE FROM staff",
        "INSERT INTO staff VALUES (999, 'x', 1, 'y') RETURNING id",
        "UPDATE staff SET pay = 0",
        "CREATE TABLE other (a)",
        "CREATE TEMP TABLE other (a)",
        "ALTER TABLE staff RENAME TO s",
        "ATTACH 'other.sqlite' AS other",
        "DETACH main",
        "PRAGMA writable_schema = 1",
        "PRAGMA table_info(staff)",
        "SELECT * FROM pragma_database_list()",
        "VACUUM",
        "REINDEX",
        "ANALYZE",
        "BEGIN",
        "SAVEPOINT s",
        "SELECT load_extension('x')",
        "SELECT FTS3_tokenizer('simple')",
        "SELECT 1; DROP TABLE staff",
        "SELECT 1; SELECT 2",
        "SELECT randomblob(1000000000)",
        "SELECT zeroblob(1000000000)",
        "SELECT group_concat(hex(randomblob(5000))) FROM staff",
        "SELECT zeroblob(60000) FROM staff",
    ],
)
def test_anything_but_reading_is_refused_and_leaves_no_trace(database, sql):
    before, beside = database.read_bytes(), sorted(database.parent.iterdir())
    assert reason_of(database, sql) == "refused"
    assert database.read_bytes() == before
    assert sorted(database.parent.iterdir()) == beside
    assert execution_match(database, sql, "SELECT 1").reason == "refused"


def test_vacuum_into_writes_no_file(database):
    copy = database.parent / "copy.sqlite"
    assert reason_of(database, f"VACUUM INTO '{copy}'") == "refused"
    assert not copy.exists()


@pytest.mark.parametrize(
    "sql",
    [
        "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT count(*) FROM r",
        "SELECT sum(a.pay) FROM staff a, staff b, staff c, staff d",
        "SELECT a.id FROM staff a, staff b, staff c, staff d ORDER BY a.pay * b.pay + c.pay",
    ],
)
def test_endless_queries_stop_at_either_limit(database, sql):
    assert reason_of(database, sql, max_steps=1_000_000) == "timeout"
    started = time.monotonic()
    assert reason_of(database, sql, max_steps=10**12, max_seconds=0.1) == "timeout"
    assert time.monotonic() - started < 20  # without a limit, for days


@pytest.mark.parametrize(
    "sql",
    [
        "",
        "  \n",
        ";",
        "-- nothing",
        "SELEC 1",
        "SELECT nope FROM staff",
        "SELECT ?",
        "SELECT \0 1",
        "SELECT '\ud800'",
        "SELECT 1" + " + 1" * 3000,
        "SELECT printf('%.*c', 1000000000, 'x')",
    ],
)
def test_what_is_no_query_is_an_error_not_a_crash(database, sql):
    assert reason_of(database, sql) == "error"
    assert not execution_match(database, sql, "SELECT 1")


def test_rows_are_capped(database):
    assert len(run_query(database, "SELECT id FROM staff", max_rows=300)) == 300
    assert reason_of(database, "SELECT id FROM staff", max_rows=299) == "refused"


@pytest.mark.parametrize(
    "sql", ["SELECT 1;", "SELECT 1 -- end", "/* a; b */ SELECT 1", "VALUES(1)"]
)
def test_comments_and_one_semicolon_are_fine(database, sql):
    assert run_query(database, sql) == [(1,)]


def test_printf_of_ordinary_widths_is_sqlites_own(database):
    assert run_query(database, "SELECT printf('%.2f|%4d', 1.239, 7)") == [("1.24|   7",)]


def test_text_in_another_encoding_is_read(database):
    assert run_query(database, "SELECT CAST(x'e9' AS TEXT) = CAST(x'e9' AS TEXT)") == [(1,)]
    assert not execution_match(database, "SELECT CAST(x'e9' AS TEXT)", "SELECT CAST(x'e8' AS TEXT)")


def test_order_counts_only_if_the_gold_query_asks_for_it(database):
    up, down = "SELECT id FROM staff ORDER BY id", "SELECT id FROM staff ORDER BY id DESC"
    assert execution_match(database, down, "SELECT id FROM staff")
    assert execution_match(database, down, up).reason == "mismatch"
    assert execution_match(database, down, f"SELECT id FROM ({up})")
    assert execution_match(database, up, up)


@pytest.mark.parametrize(
    ("sql", "ordered"),
    [
        ("SELECT a FROM t ORDER BY a", True),
        ("select a from t order\n  by a limit 3", True),
        ("SELECT a FROM t UNION SELECT b FROM u ORDER /* x */ BY 1", True),
        ("SELECT a FROM (SELECT a FROM t) ORDER BY a", True),
        ("SELECT a FROM (SELECT a FROM t ORDER BY a)", False),
        ("SELECT rank() OVER (ORDER BY a) FROM t", False),
        ("SELECT 'it''s ORDER BY' FROM t -- ORDER BY a", False),
        ("SELECT \"ORDER BY\" FROM [ORDER BY] WHERE b = '('", False),
    ],
)
def test_top_level_order_is_found(sql, ordered):
    assert has_order(sql) is ordered


def test_rows_count_as_a_multiset(database):
    assert not execution_match(
        database, "SELECT DISTINCT team FROM staff", "SELECT team FROM staff"
    )
    assert not execution_match(database, "VALUES (1), (1), (2)", "VALUES (1), (2), (2)")


def test_columns_may_be_permuted_but_alike_in_every_row(database):
    gold = "VALUES (1, 2), (3, 4)"
    assert execution_match(database, "VALUES (2, 1), (4, 3)", gold)
    assert not execution_match(database, "VALUES (2, 1), (3, 4)", gold)
    assert not execution_match(database, "VALUES (1), (3)", gold)
    assert not execution_match(database, "VALUES (1, 2, 1), (3, 4, 3)", gold)


def test_wide_results_keep_the_gold_order_of_columns(database):
    assert execution_match(database, "VALUES (1, 2, 3, 4, 5, 6, 7)", "VALUES (1, 2, 3, 4, 5, 6, 7)")
    assert not execution_match(
        database, "VALUES (2, 1, 3, 4, 5, 6, 7)", "VALUES (1, 2, 3, 4, 5, 6, 7)"
    )
    assert execution_match(database, "VALUES (2, 1, 3, 4, 5, 6)", "VALUES (1, 2, 3, 4, 5, 6)")


def test_empty_results_match_only_in_width(database):
    gold = "SELECT id, pay FROM staff WHERE id < 0"
    assert execution_match(database, "SELECT name, team FROM staff WHERE 0", gold)
    assert not execution_match(database, "SELECT id FROM staff WHERE id < 0", gold)


@pytest.mark.parametrize(
    ("predicted", "gold", "right"),
    [
        ("VALUES (0.1 + 0.2)", "VALUES (0.3)", True),
        ("VALUES (1000000.5)", "VALUES (1000000.6)", True),
        ("VALUES (1.00001)", "VALUES (1.0)", False),
        ("VALUES (3)", "VALUES (3.0)", True),
        ("VALUES (2.9999999999)", "VALUES (3)", True),
        ("VALUES (10000001)", "VALUES (10000002)", False),
        ("VALUES (9223372036854775807)", "VALUES (9223372036854775806)", False),
        ("VALUES (1e-17)", "VALUES (0.0)", True),
        ("VALUES (1e999)", "VALUES (1e999)", True),
        (
            "VALUES (0.30000000000000004, 'a'), (0.3, 'b')",
            "VALUES (0.3, 'a'), (0.1+0.2, 'b')",
            True,
        ),
        ("VALUES (NULL)", "VALUES (NULL)", True),
        ("VALUES (0)", "VALUES (NULL)", False),
        ("VALUES ('')", "VALUES (NULL)", False),
        ("VALUES ('1')", "VALUES (1)", False),
        ("VALUES ('a')", "VALUES ('A')", False),
        ("VALUES (x'61')", "VALUES ('a')", False),
    ],
)
def test_values_compare_by_kind_and_floats_within_tolerance(database, predicted, gold, right):
    assert bool(execution_match(database, predicted, gold)) is right


def test_sums_over_nulls_and_groups_match_however_they_are_written(database):
    gold = "SELECT team, sum(pay) FROM staff GROUP BY team"
    other = "SELECT total(pay), team FROM (SELECT * FROM staff ORDER BY id DESC) GROUP BY 2"
    assert execution_match(database, other, gold)
    assert not execution_match(database, gold + " HAVING team IS NOT NULL", gold)


def test_a_failing_gold_query_is_the_users_to_mend(database):
    with pytest.raises(UserError, match="SELECT nope"):
        execution_match(database, "SELECT 1", "SELECT nope")


def test_a_changed_database_is_read_anew(database):
    gold = "SELECT count(*) FROM staff"
    assert execution_match(database, "SELECT 300", gold)
    connection = sqlite3.connect(database)
    connection.executescript("CREATE TABLE filler (a); DELETE FROM staff WHERE id = 7")
    connection.close()
    assert execution_match(database, "SELECT 299", gold)


def test_a_missing_or_unfinished_database_is_named(database):
    with pytest.raises(UserError, match=r"nowhere\.sqlite"):
        run_query("nowhere.sqlite", "SELECT 1")
    writer = sqlite3.connect(database)
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("INSERT INTO staff (name) VALUES ('late')")
    writer.commit()
    with pytest.raises(UserError, match="-wal"):
        run_query(database, "SELECT 1")
    writer.close()
    assert run_query(database, "SELECT count(*) FROM staff") == [(301,)]


def test_every_spider_gold_query_matches_itself():
    if not SPIDER.is_dir():
        pytest.skip("../shared/data/spider is not here")
    records = json.loads((SPIDER / "dev.json").read_text())
    assert len(records) == 1034
    for record in records:
        path = SPIDER / "database" / record["db_id"] / f"{record['db_id']}.sqlite"
        assert execution_match(path, record["query"], record["query"]), record
