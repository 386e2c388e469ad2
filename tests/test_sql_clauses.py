"""Exact set match: what Spider's script takes for the same, and what it doesn't."""

import itertools
import json
import random
from pathlib import Path

import pytest

from pintern.errors import UserError
from pintern.evaluation.sql_clauses import Schema, clauses_match

SPIDER = Path(__file__).parents[1] / ".." / "shared" / "data" / "spider"
SCHEMA = Schema(
    tables=(
        ("singer", ("Singer_ID", "Name", "Age", "Country")),
        ("concert", ("Concert_ID", "Singer_ID", "Year", "Name")),
    ),
    foreign_keys=(("concert.Singer_ID", "singer.Singer_ID"),),
)
JOIN = "FROM singer AS T1 JOIN concert AS T2 ON T1.singer_id = T2.singer_id"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("SELECT name, age FROM singer", "select Age, NAME from Singer;"),
        ("SELECT name FROM singer", "SELECT DISTINCT T9.name FROM singer AS T9"),
        ("SELECT name FROM singer", "SELECT singer.name AS n FROM singer"),
        (f"SELECT T1.name {JOIN}", "SELECT b.name FROM concert a JOIN singer b"),
        (f"SELECT T1.singer_id {JOIN}", f"SELECT T2.singer_id {JOIN}"),
        (
            "SELECT name FROM singer WHERE age > 3 AND country = 'a'",
            'SELECT name FROM singer WHERE country = "b" AND age > 40',
        ),
        (
            "SELECT name FROM singer WHERE age BETWEEN 1 AND 2",
            "SELECT name FROM singer WHERE (age BETWEEN 3 AND 4)",
        ),
        (
            "SELECT country, count(*) FROM singer GROUP BY country, age",
            "SELECT count(*), country FROM singer AS x GROUP BY x.country, Age",
        ),
        (
            f"SELECT T1.name {JOIN} GROUP BY T1.singer_id",
            f"SELECT T1.name {JOIN} GROUP BY T2.singer_id",
        ),
        (
            "SELECT name FROM singer ORDER BY age LIMIT 1",
            "SELECT name FROM singer ORDER BY age ASC LIMIT 5",
        ),
        (
            "SELECT name FROM singer WHERE age > (SELECT avg(age) FROM singer WHERE age > 1)",
            "SELECT name FROM singer WHERE age > (SELECT avg(x.age) FROM singer x WHERE age > 2)",
        ),
        (
            "SELECT name FROM singer WHERE singer_id NOT IN (SELECT singer_id FROM concert)",
            "SELECT name FROM singer WHERE NOT singer_id IN (SELECT singer_id FROM concert)",
        ),
        ("SELECT age FROM singer WHERE age IN (1, 2)", "SELECT age FROM singer WHERE age IN (3)"),
        ("SELECT age FROM singer WHERE age != 1", "SELECT age FROM singer WHERE age <> -2"),
        (
            "WITH x AS (SELECT name FROM singer WHERE age > 1) SELECT name FROM x",
            "WITH X AS (SELECT Name FROM Singer WHERE age > 2) SELECT NAME FROM X",
        ),
        ("SELECT julianday(age) FROM singer", "SELECT JulianDay(age) FROM singer"),
        ("SELECT CAST(age AS INT) FROM singer", "SELECT cast(age AS integer) FROM singer"),
    ],
)
def test_the_same(one, other):
    assert clauses_match(SCHEMA, one, other) == "right"
    assert clauses_match(SCHEMA, other, one) == "right"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("SELECT name FROM singer", "SELECT age FROM singer"),
        ("SELECT name, name FROM singer", "SELECT name FROM singer"),
        ("SELECT name FROM singer", "SELECT name FROM concert"),
        ("SELECT name FROM singer", f"SELECT T1.name {JOIN}"),
        (f"SELECT T1.name {JOIN}", f"SELECT T2.name {JOIN}"),
        (f"SELECT T1.name {JOIN}", f"SELECT T1.name {JOIN.replace('JOIN', 'LEFT JOIN')}"),
        ("SELECT max(age) FROM singer", "SELECT min(age) FROM singer"),
        ("SELECT age FROM singer WHERE age > 1", "SELECT age FROM singer WHERE age >= 1"),
        (
            "SELECT age FROM singer WHERE age > 1 AND name = 'a'",
            "SELECT age FROM singer WHERE age > 1 OR name = 'a'",
        ),
        (
            "SELECT age FROM singer WHERE name LIKE 'a'",
            "SELECT age FROM singer WHERE name NOT LIKE 'a'",
        ),
        (
            "SELECT name FROM singer ORDER BY age, name",
            "SELECT name FROM singer ORDER BY name, age",
        ),
        ("SELECT age FROM singer GROUP BY age, name", "SELECT age FROM singer GROUP BY name, age"),
        (f"SELECT T1.name {JOIN} GROUP BY T1.name", f"SELECT T1.name {JOIN} GROUP BY T2.name"),
        ("SELECT name FROM singer ORDER BY age", "SELECT name FROM singer ORDER BY age DESC"),
        ("SELECT name FROM singer ORDER BY age", "SELECT name FROM singer ORDER BY age LIMIT 1"),
        (
            "SELECT name FROM singer GROUP BY name",
            "SELECT name FROM singer GROUP BY name HAVING count(*) > 1",
        ),
        (
            "SELECT name FROM singer UNION SELECT name FROM concert",
            "SELECT name FROM singer INTERSECT SELECT name FROM concert",
        ),
        (
            "SELECT name FROM singer EXCEPT SELECT name FROM concert",
            "SELECT name FROM concert EXCEPT SELECT name FROM singer",
        ),
        ("SELECT age - 1 FROM singer", "SELECT age + 1 FROM singer"),
        (
            "WITH x AS (SELECT name FROM singer) SELECT name FROM x",
            "WITH x AS (SELECT name FROM concert) SELECT name FROM x",
        ),
        ("SELECT CAST(age AS INT) FROM singer", "SELECT CAST(age AS TEXT) FROM singer"),
    ],
)
def test_not_the_same(one, other):
    assert clauses_match(SCHEMA, one, other) == "mismatch"
    assert clauses_match(SCHEMA, other, one) == "mismatch"


@pytest.mark.parametrize(
    "sql",
    [
        "",
        "\0",
        "SELEC 1",
        "DROP TABLE singer",
        "ATTACH 'x' AS y",
        "PRAGMA table_info(singer)",
        "SELECT 1; SELECT 2",
        "SELECT count(DISTINCT) FROM singer",
        "SELECT " + "(" * 9000 + "1",
        "SELECT 1" + " + 1" * 4000,
        "x" * 100_000,
    ],
)
def test_what_is_no_query_is_an_error_not_a_crash(sql):
    assert clauses_match(SCHEMA, sql, "SELECT name FROM singer") == "error"
    with pytest.raises(UserError, match="isn't one readable SELECT"):
        clauses_match(SCHEMA, "SELECT 1", sql)


def spider_queries():
    if not SPIDER.is_dir():
        pytest.skip("../shared/data/spider is not here")
    schemas = {}
    for record in json.loads((SPIDER / "tables.json").read_text()):
        names = record["table_names_original"]
        columns = record["column_names_original"]
        full = [f"{names[owner]}.{column}" for owner, column in columns]
        schemas[record["db_id"]] = Schema(
            tuple(
                (name, tuple(column for owner, column in columns if owner == place))
                for place, name in enumerate(names)
            ),
            tuple((full[a], full[b]) for a, b in record["foreign_keys"]),
        )
    records = json.loads((SPIDER / "dev.json").read_text())
    return [(schemas[record["db_id"]], record["query"]) for record in records]


def test_every_spider_gold_query_matches_itself_and_hardly_any_other():
    queries = spider_queries()
    assert len(queries) == 1034
    for schema, query in queries:
        assert clauses_match(schema, query, query) == "right", query
    # The next question but few is about the same database, with another query.
    distinct = list(dict.fromkeys(queries))
    pairs = [(a, b) for a, b in itertools.pairwise(distinct) if a[0] is b[0]]
    same = [clauses_match(a[0], a[1], b[1]) == "right" for a, b in pairs]
    assert sum(same) < 0.1 * len(pairs)


def test_half_queries_never_crash_it():
    drawn = random.Random(0)
    for schema, query in drawn.sample(spider_queries(), 300):
        words = query.split()
        for _ in range(drawn.randint(1, 3)):
            place = drawn.randrange(len(words))
            words[place : place + 1] = drawn.choice(
                ([], ["("], [")"], [words[place]] * 2, [drawn.choice(words)])
            )
            words = words or ["SELECT"]
        assert clauses_match(schema, " ".join(words), query) in ("right", "mismatch", "error")
