"""Random schemas and their questions, over many seeds."""

import random
import re
import sqlite3
from collections.abc import Iterator

import pytest
import tiny

from experiments.nano import vocabulary as words
from experiments.nano.questions import COMPARISONS, KINDS, Question, random_question
from experiments.nano.schema import RULES, Schema, Table, random_schema, render_template

SEEDS = range(300)
QUESTIONS = 12


def schema_of(seed: int, rng: random.Random | None = None) -> Schema:
    rng = rng or random.Random(seed)
    extras = seed % 4 > 0
    return random_schema(rng, rng.randint(1, 5), rng.randint(2, 7), extras=extras)


def episodes() -> Iterator[tuple[Schema, list[Question]]]:
    for seed in SEEDS:
        rng = random.Random(seed)
        schema = schema_of(seed, rng)
        yield schema, [random_question(schema, rng) for _ in range(QUESTIONS)]


def codes(schema: Schema) -> list[str]:
    columns = [c.code for t in schema.tables for c in t.columns]
    return [t.code for t in schema.tables] + columns + [key for _, _, key in schema.joins[:1]]


def names(schema: Schema) -> list[str]:
    return (
        [t.word for t in schema.tables]
        + [c.word for t in schema.tables for c in t.columns]
        + [name for t in schema.tables for name, _ in t.metrics]
    )


def empty_database(schema: Schema) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    for i, table in enumerate(schema.tables):
        keys = {key for child, parent, key in schema.joins if i in (child, parent)}
        columns = ", ".join([c.code for c in table.columns] + sorted(keys))
        connection.execute(f"CREATE TABLE {table.code} ({columns})")
    return connection


def asked_table(schema: Schema, question: Question) -> Table:
    code = re.search(r" FROM (\w+)", question.sql)[1]
    return next(table for table in schema.tables if table.code == code)


def rule(formula: str) -> list[str]:
    """The flag whose rows a formula leaves out, if any."""
    return re.findall(r" \* \( 1 - (\w+) \)$", formula)


def test_words_and_codes_are_distinct():
    for seed in SEEDS:
        schema = schema_of(seed)
        assert len(set(codes(schema))) == len(codes(schema))
        assert len(set(names(schema))) == len(names(schema))
        assert not set(codes(schema)) & set(names(schema))


def test_every_table_joins_one_hub_on_one_key():
    for seed in SEEDS:
        schema = schema_of(seed)
        tables = set(range(len(schema.tables)))
        assert len(schema.joins) == len(tables) - 1
        assert len({(parent, key) for _, parent, key in schema.joins}) == min(1, len(tables) - 1)
        for _, hub, _ in schema.joins:
            assert {child for child, _, _ in schema.joins} == tables - {hub}


def test_columns_and_formulas_are_of_their_table():
    ruled = 0
    for seed in SEEDS:
        for table in schema_of(seed).tables:
            flags = {column.word: column.code for column in table.of_kind("flag")}
            assert set(flags) <= set(words.FLAGS)
            assert {column.kind for column in table.columns} <= {"number", "text", "date", "flag"}
            for _, formula in table.metrics:
                first, operator, second = formula.split()[:3]
                assert first != second
                assert {first, second} <= {c.code for c in table.of_kind("number")}
                assert set(rule(formula)) <= set(flags.values())
                tail = "".join(f" * ( 1 - {flag} )" for flag in rule(formula))
                assert formula == f"{first} {operator} {second}{tail}"
                assert operator == "*" if tail else operator in "*-+"
                ruled += bool(tail)
    assert ruled > 30


def test_a_seed_gives_one_schema_and_seeds_differ():
    assert schema_of(3) == schema_of(3)
    assert len({schema_of(seed) for seed in SEEDS}) == len(SEEDS)


def test_rules_stand_between_instruction_and_tables():
    schema = random_schema(random.Random(0), 3, 5)
    lines = render_template(schema).splitlines()
    assert lines[1 : 1 + len(RULES)] == list(RULES)
    assert lines[1 + len(RULES)].startswith("Table ")
    some = render_template(schema, rules=RULES[3:5]).splitlines()
    assert some[1:3] == list(RULES[3:5]) and some[3].startswith("Table ")


def test_template_states_every_name_and_code():
    for seed in SEEDS:
        schema = schema_of(seed)
        template = render_template(schema, random.Random(seed))
        stated = set(re.findall(r"\w+", template))
        assert set(codes(schema)) | set(names(schema)) <= stated
        for table in schema.tables:
            assert all(formula in template for _, formula in table.metrics)
            for column in table.columns:
                assert re.search(rf"\b{column.word}(?: is| =|:)? {column.code}\b", template)
            heads = re.findall(rf"\b{table.word} is {table.code}\b(.*) with ", template)
            assert heads == [""]
        for child, parent, key in schema.joins:
            mine, hub = schema.tables[child], schema.tables[parent]
            assert f"{mine.word} join {hub.word} on {key}." in template.splitlines()
        has_flags = any(table.of_kind("flag") for table in schema.tables)
        assert ("Flags hold 1 for yes and 0 for no." in template) == has_flags
        has_dates = any(table.of_kind("date") for table in schema.tables)
        assert (schema.date(2020) in template) >= has_dates


def test_every_query_runs():
    kinds = set()
    for schema, questions in episodes():
        connection = empty_database(schema)
        for question in questions:
            connection.execute(question.sql)
            kinds.add(question.kind)
        connection.close()
    assert kinds == set(KINDS)


def test_house_rule_applies_whenever_its_metric_is_asked_about():
    ruled = 0
    for schema, questions in episodes():
        for question in questions:
            table = asked_table(schema, question)
            expected = []
            for name, formula in table.metrics:
                asked = name in re.findall(r"\w+", question.query)
                assert asked == (name in question.uses) == (f"( {formula} )" in question.sql)
                expected += rule(formula) if asked else []
            assert re.findall(r"\( 1 - (\w+) \)", question.sql) == expected
            ruled += len(expected)
            # A flag is never asked about by its absence.
            flags = [c.code for t in schema.tables for c in t.of_kind("flag")]
            assert not any(re.search(rf"\b{code} = 0\b", question.sql) for code in flags)
    assert ruled > 20


def test_flag_in_the_query_is_a_condition_in_the_sql():
    flagged = 0
    for schema, questions in episodes():
        for question in questions:
            table = asked_table(schema, question)
            for column in table.of_kind("flag"):
                named = f"{column.word} {table.word}" in question.query
                assert named == bool(re.search(rf"\b{column.code} = 1\b", question.sql))
                assert named == (column.code in question.uses)
                flagged += named
    assert flagged > 100


def test_uses_holds_every_code_that_the_sql_names_itself():
    """A formula's columns come with the name of the metric."""
    for schema, questions in episodes():
        for question in questions:
            table = asked_table(schema, question)
            implied = set()
            for name, formula in table.metrics:
                if name in question.uses:
                    assert formula in question.sql
                    implied |= set(formula.split())
            present = set(re.findall(r"\w+", question.sql)) & set(codes(schema))
            assert present - question.uses <= implied
            assert question.uses & set(codes(schema)) <= present


def test_query_alone_is_not_enough():
    """No private code stands in a query."""
    for schema, questions in episodes():
        for question in questions:
            spoken = set(re.findall(r"\w+", question.query))
            assert not spoken & set(codes(schema))


def test_numbers_and_values_of_the_query_stand_in_the_sql():
    for _, questions in episodes():
        for question in questions:
            for value in re.findall(rf"(?:{'|'.join(COMPARISONS)}) (\d+)", question.query):
                assert re.search(rf"[<>=] {value}\b", question.sql)
            for year in re.findall(r"(?:since|before) (\d{4})", question.query):
                assert year in question.sql
                assert "date format" in question.uses


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_kind_and_table_can_be_asked_for(kind):
    for seed in range(40):
        rng = random.Random(seed)
        schema = random_schema(rng, 3, 6)
        for table in schema.tables:
            question = random_question(schema, rng, kind=kind, table=table)
            assert question.kind == kind  # three joined tables of six columns serve every kind
            assert asked_table(schema, question) == table


def test_what_a_table_cannot_serve_becomes_another_kind():
    rng = random.Random(0)
    schema = random_schema(rng, 1, 2)
    for _ in range(20):
        question = random_question(schema, rng, kind="join")
        assert question.kind == "filter"
        assert "JOIN" not in question.sql


def test_the_generators_commands_tell_what_is_wrong_without_a_traceback(tmp_path):
    (tmp_path / "a file").touch()
    for command, flags, said in (
        ("nano.pretrain", [f"--out={tmp_path}"], "is there already. Nothing is overwritten"),
        ("nano.pretrain", [f"--out={tmp_path / 'new'}", "--width=96"], "not a multiple of 64"),
        ("company.generate", [f"--out={tmp_path / 'a file'}"], "is not a directory"),
        ("company.generate", ["--sed=1"], "Unknown command line flag 'sed'"),
    ):
        code, _, told = tiny.run("-m", f"experiments.{command}", *flags)
        assert code == 2 and told.startswith("error: ") and told.count("\n") == 1
        assert said in told


def test_batches_come_in_order_and_what_fails_in_their_thread_ends_the_training():
    script = (
        "from experiments.nano.pretrain import _Batches\n"
        "batches = _Batches(lambda top: (top, 6 // (3 - top)), 0)\n"
        "print([batches.next(top)[0] for top in (1, 2, 3, 0)])\n"  # four ahead: of level 0
        "print([batches.next(0)[0] for _ in range(2)], flush=True)\n"
        "batches.next(0)\n"
    )
    code, printed, told = tiny.run("-c", script)
    assert (code, printed) == (1, "[0, 0, 0, 0]\n[1, 2]\n")
    assert "ZeroDivisionError" in told
