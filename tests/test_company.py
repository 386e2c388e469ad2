"""The company task: files as generated, answers worth asking for, slices true to their name."""

import json
import re
import sqlite3
from pathlib import Path

import pytest

from experiments.company import schema as company
from experiments.company.database import RANGES, ROWS, fill
from experiments.company.task import (
    HOUSE_RULE,
    KINDS,
    Task,
    conditions,
    is_telling,
    make_task,
    needs_every_part,
    records,
    write_task,
)
from experiments.nano import vocabulary as words
from experiments.nano.questions import Question
from pintern.errors import UserError

ASSETS = Path(__file__).parents[1] / "pintern" / "assets"
FILES = ASSETS / "company"
DEFAULT_SEED = 0


@pytest.fixture(scope="module")
def task() -> Task:
    return make_task(DEFAULT_SEED)


@pytest.fixture(scope="module")
def template() -> str:
    return (FILES / "template.txt").read_text(encoding="utf-8")


@pytest.fixture
def database():
    connection = sqlite3.connect(f"file:{FILES / 'company.sqlite'}?mode=ro", uri=True)
    yield connection
    connection.close()


def lines(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (FILES / name).read_text(encoding="utf-8").splitlines()]


def slice_of(part: str) -> list[dict[str, str]]:
    return [record for record in lines("test.jsonl") if record["slice"] == part]


def flag_columns() -> list[str]:
    return [c.code for table in company.COMPANY.tables for c in table.of_kind("flag")]


def stated(template: str) -> set[str]:
    """The facts of the template."""
    found = set(re.findall(r"\w+", template)) & company.codes()
    for table in company.COMPANY.tables:
        found |= {formula for _, formula in table.metrics if f" {formula}." in template}
        (columns,) = re.findall(
            rf"^Table {table.word} is {table.code} with (.*)\.$", template, re.M
        )
        for flag in table.of_kind("flag"):
            named = f"{flag.word} is {flag.code}" in columns.split(", ")
            if named and "Flags hold 1 for yes and 0 for no." in template.splitlines():
                found.add(f"{flag.code} = 1")
    return found


def facts(sql: str) -> set[str]:
    """What a query takes from the prompt, read off its text: codes, flag conditions, formulas."""
    found = set(re.findall(r"\w+", sql)) & company.codes()
    found |= set(re.findall(rf"\b(?:{'|'.join(flag_columns())}) = [01]\b", sql))
    return found | set(re.findall(rf"\( (\w+ [*+-] \w+(?:{HOUSE_RULE.pattern})?) \)", sql))


def schema_words() -> list[str]:
    tables = company.COMPANY.tables
    return (
        [t.word for t in tables]
        + [c.word for t in tables for c in t.columns]
        + [name for t in tables for name, _ in t.metrics]
    )


def schema_codes() -> list[str]:
    tables = company.COMPANY.tables
    columns = [c.code for t in tables for c in t.columns]
    return [t.code for t in tables] + columns + [company.COMPANY.joins[0][2]]


def test_words_and_codes_are_distinct_and_of_the_vocabulary():
    everything = schema_words() + schema_codes()
    assert len(set(everything)) == len(everything)
    assert set(schema_codes()) == company.codes() <= set(words.CODES)
    for table in company.COMPANY.tables:
        assert table.word in words.TABLES
        pools = {
            "number": words.NUMBERS,
            "text": tuple(words.TEXTS),
            "date": words.DATES,
            "flag": words.FLAGS,
        }
        assert all(column.word in pools[column.kind] for column in table.columns)
        for name, formula in table.metrics:
            first, operator, second, *rule = formula.split()
            assert name in words.METRICS
            assert {first, second} <= {c.code for c in table.of_kind("number")}
            if rule:
                assert operator == "*"
                assert " ".join(rule) in {f"* ( 1 - {c.code} )" for c in table.of_kind("flag")}
    assert {word: ROWS[word] for word in (t.word for t in company.COMPANY.tables)} == ROWS
    assert set(RANGES) == {c.word for t in company.COMPANY.tables for c in t.of_kind("number")}
    assert set(company.HELD_OUT_TABLES + company.HELD_OUT_COLUMNS) <= set(schema_words())


def test_files_are_what_the_generator_makes(task, template, database):
    assert template == task.template
    for name, made in records(task).items():
        assert lines(name) == made
    fresh = sqlite3.connect(":memory:")
    fill(fresh, task.rows)
    assert list(database.iterdump()) == list(fresh.iterdump())
    assert (FILES / "company.sqlite").stat().st_size < 300_000


def test_written_files_equal_the_committed_ones(task, tmp_path):
    write_task(task, tmp_path)
    for name in ("template.txt", "train.jsonl", "log.jsonl", "test.jsonl"):
        assert (tmp_path / name).read_bytes() == (FILES / name).read_bytes()


def test_another_seed_gives_other_rows_and_questions(task):
    other = make_task(DEFAULT_SEED + 1)
    assert other.rows != task.rows
    assert other.template == task.template
    assert {q.query for q in other.seen} != {q.query for q in task.seen}


def test_out_must_be_a_directory(task, tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(UserError, match="file"):
        write_task(task, path)


def test_pieces_fit_what_the_base_was_trained_on(template):
    if not (ASSETS / "nano" / "tokenizer.json").exists():
        pytest.skip("the bundled tokenizer, pintern/assets/nano, is absent")
    from experiments.nano.episodes import COMPLETION, LADDER, QUERY
    from pintern.prompts.tokens import PieceTokenizer

    tokenizer = PieceTokenizer.load(ASSETS / "nano")
    length = len(tokenizer.bos) + len(tokenizer.encode(template))
    assert 300 <= length <= min(600, LADDER[-1].prefix_slots)
    records = [record for name in ("train", "log", "test") for record in lines(f"{name}.jsonl")]
    queries = [QUERY.format(query=record["query"]) for record in records]
    pairs = [record for record in records if "completion" in record]
    completions = [COMPLETION.format(completion=record["completion"]) for record in pairs]
    assert max(map(len, tokenizer.encode_many(queries))) <= 24
    assert max(map(len, tokenizer.encode_many(completions))) <= 38


def test_every_gold_query_has_an_answer(database):
    for record in lines("train.jsonl") + lines("test.jsonl"):
        rows = database.execute(record["completion"]).fetchall()
        assert rows and rows != [(0,)], record
        assert all(value is not None for row in rows for value in row), record


def test_house_rules_change_test_answers(database):
    """Whoever forgets that cancelled orders bring no revenue answers wrongly."""
    ruled = dict.fromkeys(("zer", "nis"), 0)
    for record in lines("test.jsonl"):
        sql = record["completion"]
        for flag in re.findall(r"\( 1 - (\w+) \)", sql):
            ruled[flag] += 1
            without = database.execute(sql.replace(f" * ( 1 - {flag} )", "")).fetchall()
            assert sorted(without) != sorted(database.execute(sql).fetchall()), record
    assert min(ruled.values()) >= 5


def test_numbers_never_repeat_within_a_column(database):
    """Otherwise ORDER BY ... LIMIT would have several right answers."""
    for table in company.COMPANY.tables:
        (count,) = database.execute(f"SELECT COUNT(*) FROM {table.code}").fetchone()
        assert count == ROWS[table.word]
        for column in table.of_kind("number"):
            sql = f"SELECT COUNT(DISTINCT {column.code}), MIN({column.code}), MAX({column.code})"
            distinct, low, high = database.execute(f"{sql} FROM {table.code}").fetchone()
            assert distinct == count
            assert RANGES[column.word][0] <= low < high <= RANGES[column.word][1]


def test_stored_types_dates_and_flags(database):
    for table in company.COMPANY.tables:
        for column in table.columns:
            rows = database.execute(
                f"SELECT DISTINCT {column.code}, typeof({column.code}) FROM {table.code}"
            ).fetchall()
            kind = "text" if column.kind == "text" else "integer"
            assert {stored for _, stored in rows} == {kind}
            if column.kind == "flag":
                assert {value for value, _ in rows} == {0, 1}
            if column.kind == "date":
                assert all(re.fullmatch(r"20[12]\d[01]\d[0-2]\d", str(v)) for v, _ in rows)


def test_every_table_points_at_rows_of_the_one_hub(database):
    tables, joins = company.COMPANY.tables, company.COMPANY.joins
    ((hub, key),) = {(parent, key) for _, parent, key in joins}
    assert sorted(child for child, _, _ in joins) == [i for i in range(len(tables)) if i != hub]
    for table in tables:
        stored = [row[1] for row in database.execute(f"PRAGMA table_info({table.code})")]
        assert stored == [*(column.code for column in table.columns), key]
    numbers = database.execute(f"SELECT {key} FROM {tables[hub].code}").fetchall()
    assert numbers == [(i,) for i in range(1, ROWS[tables[hub].word] + 1)]
    for child, _, _ in joins:
        sql = f"FROM {tables[child].code} JOIN {tables[hub].code} USING ( {key} )"
        rows, hubs = database.execute(f"SELECT COUNT(*), COUNT(DISTINCT {key}) {sql}").fetchone()
        assert rows == ROWS[tables[child].word]
        assert hubs > ROWS[tables[hub].word] / 3


def test_seen_needs_only_what_labelled_pairs_show():
    shown = set().union(*(facts(record["completion"]) for record in lines("train.jsonl")))
    assert len(slice_of("seen")) == 100
    for record in slice_of("seen"):
        assert facts(record["completion"]) <= shown, record


def test_unseen_needs_something_that_no_labelled_pair_shows(template):
    shown = set().union(*(facts(record["completion"]) for record in lines("train.jsonl")))
    assert len(slice_of("unseen")) == 100
    for record in slice_of("unseen"):
        assert facts(record["completion"]) - shown, record
    for record in lines("test.jsonl"):
        assert facts(record["completion"]) <= stated(template), record


def test_every_held_out_thing_is_tested_and_never_labelled(task):
    stations = company.STATIONS
    along = [c.code for c in stations.columns] + [name for name, _ in stations.metrics]
    assert along[-1] == "profit"
    for thing in [*company.held_out(), *along]:
        assert not any(thing in company.draws_on(q) for q in task.train)
        assert sum(thing in company.draws_on(q) for q in task.unseen) >= 5
    columns = [c for t in company.COMPANY.tables for c in t.columns]
    shown = set().union(*(company.draws_on(q) for q in task.train))
    hidden = [column.code for column in columns if column.code not in shown]
    assert 0.25 < len(hidden) / len(columns) < 0.45


def test_what_labelled_pairs_show_is_shown_often_and_tested(task):
    for table in company.COMPANY.tables:
        if table.word in company.HELD_OUT_TABLES:
            continue
        for flag in (c for c in table.of_kind("flag") if c.word not in company.HELD_OUT_COLUMNS):
            for pool, used, asked in ((task.train, 30, 10), (task.seen, 7, 3)):
                # In a condition, or in the formula of a metric.
                assert sum(flag.code in company.draws_on(q) for q in pool) >= used, flag
                assert sum(f"{flag.code} = 1" in conditions(q.sql) for q in pool) >= asked, flag
    for thing in set().union(*(company.draws_on(q) for q in task.train)):
        assert sum(thing in company.draws_on(q) for q in task.train) >= 20, thing
        assert any(thing in company.draws_on(q) for q in task.seen), thing


def test_every_kind_of_question_occurs_everywhere(task):
    for pool in (task.train, task.log, task.seen, task.unseen):
        assert {question.kind for question in pool} == set(KINDS)


def test_the_log_covers_the_whole_schema_and_gives_no_sql_away(task):
    covered = set().union(*(company.draws_on(question) for question in task.log))
    metrics = [name for t in company.COMPANY.tables for name, _ in t.metrics]
    assert company.codes() | company.held_out() | set(metrics) <= covered
    assert all(set(record) == {"id", "query"} for record in lines("log.jsonl"))
    assert len(lines("log.jsonl")) == 1500


def test_no_query_text_occurs_twice_and_no_test_sql_is_labelled():
    files = {name: lines(f"{name}.jsonl") for name in ("train", "log", "test")}
    queries = [record["query"] for records in files.values() for record in records]
    assert len(set(queries)) == len(queries)
    ids = [record["id"] for records in files.values() for record in records]
    assert len(set(ids)) == len(ids)
    labelled = {record["completion"] for record in files["train"]}
    assert not labelled & {record["completion"] for record in files["test"]}


def test_queries_hold_no_private_code():
    for name in ("train.jsonl", "log.jsonl", "test.jsonl"):
        for record in lines(name):
            assert not set(re.findall(r"\w+", record["query"].lower())) & company.codes(), record


def ask(sql: str) -> Question:
    return Question("", sql, "filter", frozenset())


@pytest.mark.parametrize(
    ("sql", "telling"),
    [
        ("SELECT rud FROM tig WHERE vam > 0", True),
        ("SELECT rud FROM tig WHERE vam < 0", False),  # empty
        ("SELECT COUNT ( * ) FROM tig WHERE vam < 0", False),  # 0
        ("SELECT MAX ( rud ) FROM tig WHERE vam < 0", False),  # NULL
        ("SELECT sev FROM tig WHERE sev = 'gold'", False),  # named in the query
    ],
)
def test_is_telling(sql, telling, database):
    assert is_telling(ask(sql), database) is telling


@pytest.mark.parametrize(
    ("sql", "needed"),
    [
        ("SELECT COUNT ( * ) FROM tig WHERE vam > 100", True),
        ("SELECT COUNT ( * ) FROM tig WHERE vam > 0", False),
        ("SELECT COUNT ( * ) FROM tig WHERE vam > 100 AND rud > 0", False),
        ("SELECT COUNT ( * ) FROM sof WHERE fib = 1 AND zer = 1", True),
        ("SELECT COUNT ( * ) FROM sof WHERE dug > 0 AND zer = 1", False),
        ("SELECT SUM ( mes * dug * ( 1 - zer ) ) FROM sof", True),
        ("SELECT SUM ( mes * dug * ( 1 - zer ) ) FROM sof WHERE dug > 0", False),
        ("SELECT SUM ( mes * dug * ( 1 - zer ) ) FROM sof WHERE zer = 0", False),
        ("SELECT sev, COUNT ( * ) FROM tig WHERE vam > 0 GROUP BY sev", False),
        ("SELECT sev FROM tig WHERE vam > 0 ORDER BY rud ASC LIMIT 3", False),
    ],
)
def test_needs_every_part(sql, needed, database):
    assert needs_every_part(ask(sql), database) is needed


def test_conditions_of_a_where_clause():
    assert conditions("SELECT a FROM b") == []
    assert conditions("SELECT a FROM b WHERE c = 'd' AND e > 1 GROUP BY a") == ["c = 'd'", "e > 1"]
    assert conditions("SELECT a FROM b WHERE c > 1 ORDER BY e ASC LIMIT 1") == ["c > 1"]
