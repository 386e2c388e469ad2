"""MBPP (Austin et al., 2021): a sentence and three asserts to a Python function.

The data aren't part of this project. Splits are the paper's, by task id, whatever the source calls
them.
"""

from __future__ import annotations

import ast
import warnings
from pathlib import Path
from typing import Any

from pintern.errors import UserError
from pintern.prompts.task import Example, PromptFormat, Task, read_template
from pintern.tasks.sources import Row, open_source, take

END = "[DONE]"  # closes a program, in the prompt and in what a model answers
TEMPLATE = Path(__file__).parents[1] / "assets" / "mbpp" / "template.txt"
FORMAT = PromptFormat(
    query="Task: {query}\nCode:\n", completion="{completion}\n" + END, example_end="\n\n"
)
# Task ids, both ends included; the paper's appendix A.
TEST, PROMPTS, VALIDATION, TRAIN = (11, 510), (1, 10), (511, 600), (601, 974)
SHOWN = (2, 3, 4)  # of the prompt's: those in the paper's three-shot prompt
_FIELDS = {"task_id": int, "text": str, "code": str, "test_list": list}


def mbpp_task(where: str) -> Task:
    """Reads all tasks and splits them; the template is our instructions and three examples.

    A query is the task's sentence and its asserts, as the paper shows them to the model.

    Args:
      where: `mbpp.jsonl`, its folder, or another source with its fields (`sources.open_source`).

    Raises:
      UserError: no such source, a row that isn't a record, or a split without records.
    """
    records = _read(where)
    splits = {}
    for name, (first, last) in (("test", TEST), ("train", TRAIN), ("validation", VALIDATION)):
        found = [records[i] for i in range(first, last + 1) if i in records]
        if not found:
            raise UserError(
                f"{where} has no task with an id from {first} to {last}, the {name} set."
            )
        splits[name] = tuple(_example(record, name) for record in found)
    shown = [_example(records[i], "prompt") for i in SHOWN if i in records]
    template = read_template(TEMPLATE) + "\n"
    template += "".join("".join(FORMAT.render_example(example)) for example in shown)
    return Task(
        name="mbpp",
        template=template,
        format=FORMAT,
        train=splits["train"],
        test=splits["test"],
        metric="pass",
        metric_options={"end": END},
        note=(
            f"MBPP: {len(records)} tasks read; the paper's split: train {len(splits['train'])}, "
            f"test {len(splits['test'])}, validation {len(splits['validation'])} (not used), "
            f"tasks {', '.join(map(str, SHOWN))} in the template. Setup code runs before the "
            "program; the gold programs of 367 and 927, which theirs needs, fail by that."
        ),
    )


def mbpp_examples(where: str) -> tuple[Example, ...]:
    """All tasks, whatever their split, in the order of their ids."""
    return tuple(_example(record, "mbpp") for _, record in sorted(_read(where).items()))


def facts_of(record: Row) -> dict[str, Any]:
    """What a program for this record is judged by, as `evaluation.sandbox.runner.Problem` has it.

    The tests may use what the gold program defines at its top level, and import what it imports.
    """
    tree = _parse(record["code"])
    defined: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Assign):
            defined |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    setup = record.get("test_setup_code") or ""
    used = {
        node.id
        for source in (*record["test_list"], setup)
        for node in ast.walk(_parse(source))
        if isinstance(node, ast.Name)
    }
    return {
        "tests": tuple(record["test_list"]),
        "names": tuple(sorted(defined & used)),
        "imports": "\n".join(map(ast.unparse, imports)),
        "setup": setup,
    }


def _parse(source: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of regular expressions that aren't raw strings
        return ast.parse(source)


def _check_sources(record: Row, place: str) -> None:
    """Refuses a record whose program, tests or setup this Python can't read."""
    setup = record.get("test_setup_code") or ""
    for source in (record["code"], *record["test_list"], setup):
        try:
            _parse(source)
        except (SyntaxError, TypeError, ValueError) as error:
            raise UserError(
                f"{place}: {source!r:.60} is no Python 3: {error}.",
                "code, each of test_list, and test_setup_code must be.",
            ) from error


def _example(record: Row, split: str) -> Example:
    tests = "\n".join(record["test_list"])
    return Example(
        query=f"{record['text'].strip()} Your code should pass these tests:\n{tests}",
        completion=_unix(record["code"]),
        id=f"{split}-{record['task_id']}",
        facts=facts_of(record),
    )


def _unix(code: str) -> str:
    lines = code.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n".join(line.rstrip() for line in lines).strip("\n")


def _read(where: str) -> dict[int, Row]:
    path = Path(where) / "mbpp.jsonl"
    found = open_source(str(path) if where and path.is_file() else where)
    records: dict[int, Row] = {}
    for split, read in found.items():
        for number, row in enumerate(read(), start=1):
            place = f"{where}, {split} row {number}"
            for field, kind in _FIELDS.items():
                take(row, field, kind, place)
            _check_sources(row, place)
            if row["task_id"] in records:
                raise UserError(f"{place}: task {row['task_id']} is there already.")
            records[row["task_id"]] = row
    return records
