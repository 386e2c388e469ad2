"""Tasks whose answers are run: MBPP, Spider and WikiSQL, from their public formats."""

import bz2
import json
import sqlite3
from pathlib import Path

import pytest
import tiny

from experiments.ipt import spider as spider_config
from experiments.promptintern import mbpp as mbpp_config
from pintern.config import validate
from pintern.errors import UserError
from pintern.evaluation.metrics import score_predictions
from pintern.evaluation.metrics.programs import program_of
from pintern.evaluation.sandbox import seccomp
from pintern.evaluation.sql import Table, execution_match
from pintern.prompts.task import Example
from pintern.tasks.mbpp import FORMAT, facts_of, mbpp_examples, mbpp_task
from pintern.tasks.spider import spider_task
from pintern.tasks.wikisql import wikisql_task

DATA = Path(__file__).parents[1] / ".." / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is absent")
confined = pytest.mark.skipif(not seccomp.supported(), reason="programs aren't confined here")


def score_golds(task, metric, examples):
    golds = [example.completion for example in examples]
    return score_predictions(metric, golds, examples, **task.metric_options)


# MBPP


def mbpp_record(number, **changes):
    record = {
        "task_id": number,
        "text": f"Write a function to add {number}. ",
        "code": f"import math\r\ndef add(x): \r\n\treturn x + {number}\r\n",
        "test_list": [f"assert add({i}) == {i + number}" for i in range(3)],
        "test_setup_code": "",
        "challenge_test_list": [],
    }
    return record | changes


@pytest.fixture
def mbpp(tmp_path):
    def write(*records):
        path = tmp_path / "mbpp.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return str(path)

    return write


IDS = (1, 2, 3, 4, 10, 11, 12, 510, 511, 600, 601, 974)


def test_mbpp_splits_by_task_id_whatever_the_order(mbpp, tmp_path):
    task = mbpp_task(mbpp(*map(mbpp_record, IDS[::-1])))
    assert [e.id for e in task.test] == ["test-11", "test-12", "test-510"]
    assert [e.id for e in task.train] == ["train-601", "train-974"]
    assert mbpp_task(str(tmp_path)) == task
    query = task.test[0].query
    assert query == (
        "Write a function to add 11. Your code should pass these tests:\n"
        "assert add(0) == 11\nassert add(1) == 12\nassert add(2) == 13"
    )
    assert task.test[0].completion == "import math\ndef add(x):\n\treturn x + 11"
    for number in (2, 3, 4):
        assert f"return x + {number}\n[DONE]" in task.template
    assert "return x + 1\n" not in task.template
    assert task.metric == "pass"


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([mbpp_record(601)], "no task with an id from 11 to 510"),
        ([mbpp_record(11), mbpp_record(11)], "row 2: task 11 is there already"),
        ([mbpp_record(11, code=3)], "code is 3; expected str"),
        ([{"task_id": 11}], "field 'text' is missing"),
        ([mbpp_record(11, code="print 'x'")], "row 1: \"print 'x'\" is no Python 3"),
        ([mbpp_record(11, test_list=["assert f("])], "'assert f\\(' is no Python 3"),
        ([mbpp_record(11, test_list=[5])], "row 1: 5 is no Python 3"),
        ([mbpp_record(11, test_setup_code="a b")], "'a b' is no Python 3"),
    ],
)
def test_faulty_mbpp_files_are_refused(mbpp, records, message):
    with pytest.raises(UserError, match=message):
        mbpp_task(mbpp(*records))


def test_mbpp_needs_its_data():
    with pytest.raises(UserError, match=r"config\.task\.data is empty"):
        mbpp_task("")


def test_tests_may_use_what_the_gold_program_defines_and_nothing_else():
    code = "from math import pi\nN = 3\nclass A: pass\ndef sum(a): pass\ndef other(): pass"
    record = mbpp_record(1, code=code, test_list=["assert sum(A()) == abs(N) + pi"])
    facts = facts_of(record)
    assert facts["names"] == ("A", "N", "sum")
    assert facts["imports"] == "from math import pi"


@confined
def test_answers_are_programs_however_they_are_wrapped(mbpp):
    task = mbpp_task(mbpp(*map(mbpp_record, IDS)))
    [first, *_] = task.test
    right = "def add(x): return x + 11"
    answers = {
        right: 100,
        FORMAT.render_completion(right): 100,
        f"{right}\n[DONE]\n\nTask: Write": 100,
        f"Here it is:\n```python\n{right}\n```\nIt adds.": 100,
        f"```\n{right}": 100,
        f"```Python\n{right}\n```": 100,
        f"```python3\r\n{right}\n```": 100,
        f"Here it is:\n{right}": 0,
        "def add(x): return x + 12": 0,
        "def plus(x): return x + 11": 0,
        "": 0,
    }
    scores = score_predictions("pass", list(answers), [first] * len(answers), **task.metric_options)
    assert scores.per_example == list(answers.values())
    assert scores.reasons == {"right": 7, "error": 3, "mismatch": 1}
    assert "landlock+seccomp" in scores.signature and "cpu:10s" in scores.signature


def test_program_of_leaves_other_text_alone():
    assert program_of("a = '```'\nb") == "a = '```'\nb"
    assert program_of("a [DONE] b") == "a [DONE] b"


def test_pass_needs_tests():
    with pytest.raises(UserError, match="needs the tests of every example"):
        score_predictions("pass", ["x"], ["y"])
    whole = {"tests": ["assert add(1) == 2"], "names": ["add"]}
    for change, message in (
        ({"names": []}, r"has no facts\.names"),
        ({"tests": whole["tests"][0]}, r"facts\.tests of example 7 is a text; expected a list"),
        ({"names": "add"}, r"facts\.names of example 7 is a text.*Write \['add'\]"),
        ({"tests": 5}, "example 7 is judged by can't be run"),
        ({"tests": ["assert add("]}, "example 7 .* was never closed"),
        ({"names": [5]}, "example 7 .*lists of Python text"),
        ({"imports": ["import re"]}, "example 7 .*imports and setup a text"),
        ({"setup": "x ="}, "example 7 .*invalid syntax"),
    ):
        example = Example("q", "def add(x): return x + 1", id="7", facts=whole | change)
        with pytest.raises(UserError, match=message):
            score_predictions("pass", [example.completion], [example])


@pytest.mark.slow
@needs_data
@confined
def test_972_of_974_gold_programs_pass():
    code, out, err = tiny.run("-m", "experiments.gold", "--task=mbpp", f"--data={DATA / 'mbpp'}")
    assert code == 0, err
    assert "| mbpp | pass | 974 | 972 |" in out
    assert "not right: mbpp-367, mbpp-927" in out
    assert "'error': 2" in out


@needs_data
def test_mbpp_itself():
    task = mbpp_task(str(DATA / "mbpp" / "mbpp.jsonl"))
    assert (len(task.train), len(task.test)) == (374, 500)
    assert len(mbpp_examples(str(DATA / "mbpp"))) == 974
    asked = {example.query for example in task.test}
    assert not asked & {example.query for example in task.train}
    # Two programs of the set's define a name that Python has; the tests mean theirs.
    assert "sum" in mbpp_examples(str(DATA / "mbpp"))[125].facts["names"]


# Spider


@pytest.fixture
def spider(tmp_path):
    """A folder in the release's layout; a dict replaces files."""
    tables = [
        {
            "db_id": name,
            "table_names_original": ["Singer", "Song"],
            "column_names_original": [[-1, "*"], [0, "Id"], [0, "Name"], [1, "Singer"], [1, "T"]],
            "foreign_keys": [[3, 1]],
        }
        for name in ("a", "b")
    ]
    train = [
        {"db_id": "a", "question": "How many\tsingers?", "query": "SELECT count(*) FROM Singer"}
    ]
    dev = [{"db_id": "b", "question": "Names?", "query": "SELECT Name , Id\nFROM Singer ;"}]

    def write(**replaced):
        files = {"tables": tables, "train_spider": train, "dev": dev} | replaced
        for name, records in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(records))
        folder = tmp_path / "database" / "b"
        folder.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(folder / "b.sqlite")
        connection.executescript(
            "DROP TABLE IF EXISTS Singer; CREATE TABLE Singer (Id, Name);"
            "INSERT INTO Singer VALUES (1, 'x'), (2, 'y');"
        )
        connection.close()
        return str(tmp_path)

    return write


def schema(columns, keys=()):
    return {
        "db_id": "b",
        "table_names_original": ["Singer"],
        "column_names_original": columns,
        "foreign_keys": keys,
    }


def test_spider_shows_each_questions_schema_in_its_query(spider):
    task = spider_task(spider())
    assert task.train[0].query == (
        "Database: a\nSinger(Id, Name)\nSong(Singer, T)\nJoins: Song.Singer = Singer.Id\n"
        "Question: How many singers?"
    )
    assert task.test[0].completion == "SELECT Name , Id FROM Singer"
    assert "Singer" not in task.template
    assert (task.metric, task.further_metrics) == ("clauses", ("sql",))


def test_spider_is_scored_by_clauses_and_by_execution(spider):
    task = spider_task(spider())
    answers = [
        "SELECT Id, Name FROM Singer",
        "SELECT Id, Name FROM (SELECT * FROM Singer)",
        "SELECT Id, Name FROM Singer WHERE Id > 1",
        "DROP TABLE Singer",
        "ATTACH 'x.sqlite' AS x",
        "PRAGMA writable_schema = 1",
    ]
    tests = task.test * len(answers)
    clauses = score_predictions("clauses", answers, tests)
    assert clauses.per_example == [100, 0, 0, 0, 0, 0]
    assert clauses.reasons == {"right": 1, "mismatch": 2, "error": 3}
    assert "exact-set-match" in clauses.signature
    sql = score_predictions("sql", answers, tests)
    assert sql.per_example == [100, 100, 0, 0, 0, 0]
    assert sql.reasons == {"right": 2, "mismatch": 1, "refused": 3}


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"dev": [{"db_id": "c", "question": "q", "query": "s"}]}, "tables.json has no 'c'"),
        ({"dev": [{"db_id": "a", "question": "q", "query": "s"}]}, "a.sqlite isn't there"),
        ({"dev": [{"db_id": "b", "query": "s"}]}, "record 1: field 'question' is missing"),
        ({"tables": {}}, "is not a list of objects"),
        ({"dev": []}, "dev.json holds no records"),
        ({"tables": [schema([[5, "Id"]])]}, r"tables\.json: 'b' has a column or a foreign key"),
        ({"tables": [schema(["Id"])]}, "must be integers"),
        ({"tables": [schema([[0, "Id"]], [[0, 9]])]}, "index out of range"),
    ],
)
def test_faulty_spider_folders_are_refused(spider, replaced, message):
    with pytest.raises(UserError, match=message):
        spider_task(spider(**replaced))


def test_spider_needs_its_folder(tmp_path):
    with pytest.raises(UserError, match=r"config\.task\.data is empty"):
        spider_task("")
    with pytest.raises(UserError, match=r"tables\.json"):
        spider_task(str(tmp_path))


@needs_data
def test_spider_golds_match_themselves_and_with_rows_and_columns_in_another_order():
    import sqlglot
    from sqlglot import exp

    task = spider_task(str(DATA / "spider"))
    assert (len(task.train), len(task.test)) == (7000, 1034)
    for metric in (task.metric, *task.further_metrics):
        assert score_golds(task, metric, task.test).value == 100
    columns, rows = 0, 0
    for example in task.test:
        database, gold = example.facts["database"], example.completion
        tree = sqlglot.parse_one(gold, read="sqlite")
        if not isinstance(tree, exp.Select) or tree.args.get("order") or tree.args.get("limit"):
            continue
        # Ordered by its last column, downwards: another order of rows, where there are several.
        width = len(tree.expressions)
        assert execution_match(database, f"{gold} ORDER BY {width} DESC", gold), gold
        rows += 1
        # Not where ORDER BY-less columns are picked from a group by SQLite's whim.
        if 1 < width <= 6 and not any(isinstance(e, exp.Star) for e in tree.expressions):
            turned = tree.copy()
            turned.set("expressions", turned.expressions[::-1])
            assert execution_match(database, turned.sql(dialect="sqlite"), gold), gold
            columns += 1
    assert rows > 500 and columns > 100


# WikiSQL


def release(folder):
    """Two tables and a few questions in the release's layout."""
    table = {
        "id": "1-1",
        "header": ["Player", "Points", "points"],
        "types": ["text", "real", "text"],
        "rows": [["Ann", "1,200", "a"], ["Bob", 7, "b"], ["Cy", 3.5, "b"]],
    }
    question = {"phase": 1, "table_id": "1-1", "question": "Who? "}
    logical = [
        {"sel": 0, "agg": 0, "conds": [[1, 1, 5]]},
        {"sel": 1, "agg": 4, "conds": [[2, 0, "B"]]},
        {"sel": 0, "agg": 3, "conds": []},
        {"sel": 0, "agg": 0, "conds": [[0, 0, "o'neil"], [1, 2, "1,000.5"]]},
    ]
    for split in ("train", "dev", "test"):
        (folder / f"{split}.tables.jsonl").write_text(json.dumps(table) + "\n")
        rows = [json.dumps(question | {"sql": form}) for form in logical]
        (folder / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    return str(folder)


def test_wikisqls_release_is_run_on_its_own_tables(tmp_path):
    task = wikisql_task(release(tmp_path))
    assert [example.completion for example in task.test] == [
        'SELECT "Player" FROM t WHERE "Points" > 5',
        'SELECT SUM("Points") FROM t WHERE "points 2" = \'B\'',
        'SELECT COUNT("Player") FROM t',
        'SELECT "Player" FROM t WHERE "Player" = \'o\'\'neil\' AND "Points" < 1000.5',
    ]
    assert task.test[0].query == (
        "Columns: Player (text), Points (real), points 2 (text)\nQuestion: Who?"
    )
    answers = ["VALUES ('Bob'), ('Ann')", "SELECT 10.5", "SELECT 3", "SELECT 'x' WHERE 0"]
    assert score_predictions("sql", answers, task.test).value == 100
    assert score_predictions("sql", answers[::-1], task.test).value == 0


def test_a_wikisql_query_that_does_not_fit_its_table_is_refused(tmp_path):
    folder = release(tmp_path)
    row = {"table_id": "1-1", "question": "q", "sql": {"sel": 9, "agg": 0, "conds": []}}
    (tmp_path / "test.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"test\.jsonl, line 1: its query doesn't fit its table"):
        wikisql_task(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"types": ["text"]},
        {"types": ["text", "date", "text"]},
        {"header": ["Player", 5, "points"]},
        {"rows": [5]},
        {"rows": [["Ann", 1]]},
    ],
)
def test_a_wikisql_table_that_is_none_is_refused(tmp_path, change):
    folder = release(tmp_path)
    path = tmp_path / "dev.tables.jsonl"
    path.write_text(json.dumps(json.loads(path.read_text()) | change) + "\n")
    with pytest.raises(UserError, match=r"dev\.tables\.jsonl, line 1: header, types and rows"):
        wikisql_task(folder)


def collected(sql, split="test", table="2-1", **variables):
    sentence = {
        "original": "Which one?",
        "question-split": split,
        "table-id": table,
        "variables": variables,
    }
    return {"sentences": [sentence], "sql": [sql], "variables": []}


FROM = "FROM TABLE AS TABLEalias0"
COLLECTION = [
    collected(
        f"SELECT MAX TABLEalias0.POINTS_(A)_FIELD {FROM} WHERE TABLEalias0.BIG_TEAM_FIELD = "
        '"var0" AND TABLEalias0.YEAR_FIELD > var1 ;',
        var0="Tyrrell",
        var1="1,990",
    ),
    collected(
        f"SELECT TABLEalias0.BIG_TEAM_FIELD {FROM} WHERE TABLEalias0.YEAR_FIELD < var0 AND "
        "TABLEalias0.YEAR_FIELD > var1 ;",
        var0="2000",
        var1="1995",
    ),
    collected(f"SELECT COUNT NO._FIELD {FROM} ;"),
    collected(f"SELECT TABLEalias0.A_FIELD {FROM} WHERE TABLEalias0.B_FIELD = var0 = var1 ;"),
    collected("SELECT MP'S_TERM_FIELD FROM table WHERE YEAR_FIELD = var0 ;", "train", var0="1"),
    collected(f"SELECT TABLEalias0.X_FIELD {FROM} ;", "dev"),
]


@pytest.mark.parametrize("ending", [".json", ".json.bz2"])
def test_without_tables_rows_are_made_that_tell_wrong_from_right(tmp_path, ending):
    text = json.dumps(COLLECTION).encode()
    path = tmp_path / f"wikisql{ending}"
    path.write_bytes(bz2.compress(text) if ending.endswith("bz2") else text)
    task = wikisql_task(str(tmp_path))
    assert "1 dropped" in task.note and "has no tables" in task.note
    golds = [example.completion for example in task.test]
    assert golds[:2] == [
        'SELECT MAX("points (a)") FROM t WHERE "big team" = \'Tyrrell\' AND "year" > 1990',
        'SELECT "big team" FROM t WHERE "year" < 2000 AND "year" > 1995',
    ]
    assert score_golds(task, "sql", task.test).value == 100
    table = task.test[0].facts["table"]
    for wrong in (
        golds[0].replace("MAX", "MIN"),
        golds[0].replace("MAX", "SUM"),
        golds[0].replace("points (a)", "year"),
        golds[0].replace("Tyrrell", "Lotus"),
        golds[0].replace("> 1990", ">= 1990"),
        golds[0].replace("> 1990", "= 1990"),
        golds[0].partition(" AND ")[0],
        golds[0].replace("\"big team\" = 'Tyrrell' AND ", ""),
    ):
        assert execution_match(table, wrong, golds[0]).reason == "mismatch", wrong
    for wrong in (
        golds[1].replace("1995", "1996"),
        golds[1].replace("< 2000", "<= 2000"),
        golds[1].partition(" AND ")[0],
    ):
        assert execution_match(table, wrong, golds[1]).reason == "mismatch", wrong
    assert execution_match(table, golds[0].replace("Tyrrell", "tyrrell"), golds[0])
    assert wikisql_task(str(tmp_path)) == task


def test_a_table_in_memory_can_be_read_and_nothing_else():
    table = Table("t", (('a "b"', "REAL"),), ((1.0,), (2.0,)))
    assert execution_match(table, 'SELECT sum("a ""b""") FROM t', "SELECT 3.0")
    for sql in ("DELETE FROM t", "ATTACH ':memory:' AS x", "PRAGMA user_version = 3"):
        assert execution_match(table, sql, "SELECT 3").reason == "refused"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1", "not JSON"),
        (json.dumps([collected("SELECT x")]), "is no WikiSQL query"),
        (json.dumps([COLLECTION[2] | {"sql": ["SELECT x", "SELECT y"]}]), "'SELECT y'] is no"),
        (json.dumps([COLLECTION[2] | {"sentences": ["x"]}]), "'x' is not an object"),
        (json.dumps([COLLECTION[2] | {"sentences": [{}]}]), "'variables' is missing"),
        (json.dumps([collected(f"SELECT A_FIELD {FROM} ;", "3")]), "question-split '3' is none"),
        (json.dumps(COLLECTION[:3]), "no readable question of split train"),
    ],
)
def test_faulty_collections_are_refused(tmp_path, content, message):
    path = tmp_path / "wikisql.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        wikisql_task(str(path))


@pytest.mark.slow
@needs_data
def test_wikisql_golds_match_themselves():
    task = wikisql_task(str(DATA / "wikisql"))
    assert (len(task.train), len(task.test)) == (55349, 15567)
    assert score_golds(task, "sql", task.test[::8]).value == 100


@pytest.mark.parametrize("module", [mbpp_config, spider_config])
def test_experiments_are_valid(module):
    config = validate(module.get_config())
    assert config.task.kind in ("mbpp", "spider")
