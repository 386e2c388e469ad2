"""Examples, formats and tasks: what is read, and what is refused with which words."""

import dataclasses
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pintern.errors import UserError
from pintern.prompts.task import (
    Example,
    PromptFormat,
    read_examples,
    read_queries,
    read_template,
    split_examples,
    task_from_files,
)


@pytest.fixture
def write(tmp_path):
    def write_file(name, *records):
        path = tmp_path / name
        lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in records]
        path.write_bytes("".join(f"{line}\n" for line in lines).encode())
        return path

    return write_file


def pair(query, completion="SELECT 1", **more):
    return {"query": query, "completion": completion, **more}


@given(st.text(), st.text())
def test_format_puts_any_text_in_verbatim(query, completion):
    form = PromptFormat(query="Q {x} {query}\n", completion=" {completion};", example_end="##")
    pieces = form.render_example(Example(query, completion))
    assert pieces == (f"Q {{x}} {query}\n", f" {completion};", "##")


@pytest.mark.parametrize("field", ["query", "completion"])
def test_format_without_placeholder_is_refused(field):
    with pytest.raises(UserError, match=rf"format\.{field} is 'nothing'.*\{{{field}\}}"):
        PromptFormat(**{field: "nothing"})


def test_examples_keep_their_text_and_get_line_numbers(write):
    path = write("a.jsonl", pair("a\u2028b"), "", pair("c", " x ", id="own", slice="unseen"))
    assert read_examples(path) == (
        Example("a\u2028b", "SELECT 1", "1"),
        Example("c", " x ", "own", "unseen"),
    )


def test_examples_survive_a_round_trip(write):
    examples = (Example("a", "1", "x"), Example("b", "2", "y", "seen"))
    path = write("a.jsonl", *map(dataclasses.asdict, examples))
    assert read_examples(path) == examples


def test_byte_order_mark_is_no_part_of_the_text(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(pair("a")).encode())
    assert read_examples(tmp_path / "a.jsonl")[0].query == "a"


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ('{"query": "a",', "not JSON"),
        ("[1]", "not an object"),
        ({"query": "a"}, "completion is missing"),
        ({"completion": "a"}, "query is missing"),
        (pair(""), "query is empty"),
        (pair(" \n"), "query is empty"),
        (pair(7), "query is 7, which is not text"),
        (pair("a", None), "completion is None, which is not text"),
        (pair("a", id=3), "id is 3, which is not text"),
        (pair("a", answer="b"), "unknown field 'answer'"),
        (r'{"query": "cut \ud83d", "completion": "a"}', r"\ud83d is half of a character"),
        ('{"facts": ' + "[" * 200_000, "nested too deep"),
        ('{"facts": ' + "9" * 5_000 + "}", "not read (Exceeds the limit"),
    ],
)
def test_bad_line_is_named(write, bad, said):
    path = write("a.jsonl", pair("fine"), bad)
    with pytest.raises(UserError) as caught:
        read_examples(path)
    assert f"{path}, line 2: " in str(caught.value)
    assert said in str(caught.value)


def test_repeated_id_names_both_lines(write):
    path = write("a.jsonl", pair("a", id="2"), pair("b"))
    with pytest.raises(UserError, match=r"line 2: id '2' is taken by line 1"):
        read_examples(path)


@pytest.mark.parametrize("read", [read_examples, read_queries, read_template])
def test_unreadable_files(read, tmp_path):
    path = tmp_path / "file"
    with pytest.raises(UserError, match=r"file can't be read: No such file"):
        read(path)
    path.write_bytes(b" \n\n")
    with pytest.raises(UserError, match="file is empty"):
        read(path)
    path.write_bytes(b"ok \xff")
    with pytest.raises(UserError, match=r"line 1: not UTF-8 \(byte 3\)"):
        read(path)


def test_queries_ignore_completions(write):
    assert read_queries(write("a.jsonl", {"query": "a"}, pair("b"))) == ("a", "b")


def test_template_is_read_as_it_is(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"  a\r\nb \n")
    assert read_template(tmp_path / "t.txt") == "  a\r\nb \n"


def test_task_from_files(write):
    task = task_from_files(
        "mine",
        write("t.txt", "Rules."),
        write("train.jsonl", pair("a")),
        write("test.jsonl", pair("a", "SELECT 2"), pair("b", slice="seen")),
        unlabelled=write("log.jsonl", {"query": "z"}),
        metric="sql",
        database="x.sqlite",
    )
    assert (task.name, task.template, task.format) == ("mine", "Rules.\n", PromptFormat())
    assert [e.query for e in task.test] == ["a", "b"]
    assert (task.unlabelled, task.metric, task.database) == (("z",), "sql", "x.sqlite")
    task = dataclasses.replace(task, metric_options={"ordered": True})
    assert hash(task) == hash(dataclasses.replace(task))
    # The one answer may be the other in other words, and retrieval would show it.
    assert re.fullmatch(r"Test queries that \S*train\.jsonl has as well: 1 of 2\.", task.note)


def test_leak_is_counted_and_named(write):
    files = (
        write("t.txt", "Rules."),
        write("train.jsonl", pair("a"), pair("b"), pair("c")),
        write("test.jsonl", pair("d"), pair("c", id="leaky"), pair("a")),
    )
    with pytest.raises(UserError, match=r"2 of the 3 examples.*id 'leaky': 'c'"):
        task_from_files("mine", *files)


def test_any_right_answer_that_is_trained_on_is_a_leak(write):
    files = (
        write("t.txt", "Rules."),
        write("train.jsonl", pair("a", "two"), pair("b")),
        write("test.jsonl", pair("a", "one", references=["one", "two"]), pair("d")),
    )
    with pytest.raises(UserError, match="1 of the 2 examples"):
        task_from_files("mine", *files)


@given(
    st.lists(st.integers(0, 12), min_size=30, max_size=60).filter(lambda q: len(set(q)) > 3),
    st.floats(0.25, 0.75),
    st.integers(0, 5),
)
def test_split_is_a_partition_that_parts_no_query(numbers, share, seed):
    examples = [Example(f"q{n}", f"c{i}", str(i)) for i, n in enumerate(numbers)]
    train, test = split_examples(examples, share, seed)
    assert sorted([*train, *test], key=lambda e: int(e.id)) == examples
    assert not {e.query for e in train} & {e.query for e in test}
    assert len({e.query for e in test}) == round(share * len(set(numbers)))
    assert (train, test) == split_examples(examples, share, seed)
    assert {e.id for e in test} == {e.id for e in split_examples(examples[::-1], share, seed)[1]}


def test_split_depends_on_the_seed():
    examples = [Example(f"q{i}", "c") for i in range(50)]
    assert split_examples(examples, 0.2, 0) != split_examples(examples, 0.2, 1)


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, float("nan"), 0.01, 0.99])
def test_split_that_leaves_nothing_is_refused(share):
    with pytest.raises(UserError, match=r"test_share is|leaves one side empty"):
        split_examples([Example(f"q{i}", "c") for i in range(10)], share, 0)
