"""WikiSQL (Zhong et al., 2017): a question to one table, answered by SQL and scored by running it.

Read from the release (`train.jsonl` and `train.tables.jsonl`, and so on), or from the one file of
the text2sql-data collection (`wikisql.json`, or `.json.bz2`), which has the questions and no
tables: there `wikisql_tables` makes rows that tell wrong queries from right ones, and the note says
so.
"""

from __future__ import annotations

import bz2
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pintern.errors import UserError
from pintern.evaluation.sql import Table
from pintern.prompts.task import Example, PromptFormat, Task, read_template
from pintern.tasks.sources import Row, read_json, read_jsonl, take
from pintern.tasks.wikisql_tables import (
    Condition,
    Question,
    kinds_of,
    make_table,
    sql_of,
    table_of,
)

TEMPLATE = Path(__file__).parents[1] / "assets" / "wikisql" / "template.txt"
SPLITS = ("train", "dev", "test")
_AGGREGATES = ("", "MAX", "MIN", "COUNT", "SUM", "AVG")  # as the release numbers them
_OPERATORS = ("=", ">", "<")

# A query of text2sql-data: SELECT [AGG] TABLEalias0.NAME_FIELD FROM TABLE AS TABLEalias0 WHERE ….
_QUERY = re.compile(
    r"SELECT (?:(MAX|MIN|COUNT|SUM|AVG) )?(?:TABLEalias0\.)?(.+?)_FIELD "
    r"FROM (?:TABLE AS TABLEalias0|table)(?: WHERE (.*))? ;"
)
_AND = re.compile(r" AND (?=\S+_FIELD [=<>] )")
_CONDITION = re.compile(r'(?:TABLEalias0\.)?(.+?)_FIELD ([=<>]) "?(var\d+)"?')


def wikisql_task(where: str) -> Task:
    """Train and test as released; dev is not used.

    A query shows its table's columns, since they vary with the question; what recurs are the
    instructions.

    Args:
      where: folder of the release, or the file of text2sql-data, or its folder.

    Raises:
      UserError: no such data, or rows that aren't in either form.
    """
    questions, tables, origin = _read(where)
    sides = {
        split: tuple(
            _example(question, tables[question.table], f"{split}-{number}")
            for number, question in enumerate(found, start=1)
        )
        for split, found in questions.items()
    }
    return Task(
        name="wikisql",
        template=read_template(TEMPLATE),
        format=PromptFormat(query="{query}\nSQL:", completion=" {completion}", example_end="\n\n"),
        train=sides["train"],
        test=sides["test"],
        metric="sql",
        note=(
            f"WikiSQL: {origin} The release's split: train {len(sides['train'])}, test "
            f"{len(sides['test'])}, dev {len(sides['dev'])} (not used)."
        ),
    )


def _example(question: Question, table: Table, identity: str) -> Example:
    columns = ", ".join(f"{name} ({kind})" for name, kind in kinds_of(table))
    return Example(
        query=f"Columns: {columns}\nQuestion: {question.text}",
        completion=sql_of(question, table),
        id=identity,
        facts={"table": table},
    )


def _read(where: str) -> tuple[dict[str, list[Question]], dict[str, Table], str]:
    """Questions by split, tables by id, and where they are from."""
    if not where:
        raise UserError(
            "config.task.data is empty; the WikiSQL data are not part of this project.",
            "Pass --config.task.data=FOLDER with train.jsonl, train.tables.jsonl and so on, or "
            "the path of text2sql-data's wikisql.json.",
        )
    path = Path(where)
    for name in ("wikisql.json", "wikisql.json.bz2") if path.is_dir() else ():
        if (path / name).is_file():
            path = path / name
            break
    if path.is_dir():
        return _read_release(path)
    return _read_collection(path)


def _read_release(folder: Path) -> tuple[dict[str, list[Question]], dict[str, Table], str]:
    questions: dict[str, list[Question]] = {}
    tables: dict[str, Table] = {}
    for split in SPLITS:
        for number, row in enumerate(read_jsonl(folder / f"{split}.tables.jsonl"), start=1):
            place = f"{folder / split}.tables.jsonl, line {number}"
            fields = {name: take(row, name, list, place) for name in ("header", "types", "rows")}
            try:
                columns = list(zip(_distinct(fields["header"]), fields["types"], strict=True))
                made = table_of(columns, fields["rows"])
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise UserError(
                    f"{place}: header, types and rows are no table ({error!r}).",
                    "Each column needs a name and a type, text or real; each row a list of cells.",
                ) from error
            tables[take(row, "id", str, place)] = made
        questions[split] = []
        for number, row in enumerate(read_jsonl(folder / f"{split}.jsonl"), start=1):
            place = f"{folder / split}.jsonl, line {number}"
            questions[split].append(_question(row, tables, place))
    return questions, tables, f"{sum(map(len, questions.values()))} questions read."


def _question(row: Row, tables: dict[str, Table], place: str) -> Question:
    table = take(row, "table_id", str, place)
    logical = take(row, "sql", dict, place)
    try:
        names = [name for name, _ in tables[table].columns]
        return Question(
            take(row, "question", str, place).strip(),
            table,
            _AGGREGATES[logical["agg"]],
            names[logical["sel"]],
            tuple(
                Condition(names[column], _OPERATORS[operator], str(value))
                for column, operator, value in logical["conds"]
            ),
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(
            f"{place}: its query doesn't fit its table ({type(error).__name__}: {error}).",
            "Each needs sql.sel, sql.agg and sql.conds, and a table in the .tables.jsonl file.",
        ) from error


def _read_collection(path: Path) -> tuple[dict[str, list[Question]], dict[str, Table], str]:
    if path.suffix == ".bz2":
        try:
            records = json.loads(bz2.decompress(path.read_bytes()))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} can't be read: {error}.", "Get the file again.") from error
    else:
        records = read_json(path)
    questions: dict[str, list[Question]] = {split: [] for split in SPLITS}
    by_table: dict[str, list[Question]] = {}
    dropped = 0
    for record in records:
        for split, question in _questions(record, str(path)):
            if question is None:
                dropped += 1
                continue
            questions[split].append(question)
            by_table.setdefault(question.table, []).append(question)
    for split, found in questions.items():
        if not found:
            raise UserError(f"{path} has no readable question of split {split}.")
    tables = {name: make_table(asked) for name, asked in by_table.items()}
    total = sum(map(len, questions.values()))
    return (
        questions,
        tables,
        f"{total} questions read, {dropped} dropped (a value that the file doesn't give). This "
        "file has no tables: columns are those that some question on the table names, and queries "
        "run on rows made from the questions, so scores are not comparable with published figures.",
    )


def _questions(record: Row, where: str) -> Iterator[tuple[str, Question | None]]:
    """The sentences of a record, each with its split; None where a value isn't given."""
    queries = take(record, "sql", list, where)
    match = _QUERY.fullmatch(str(queries[0])) if len(queries) == 1 else None
    if match is None:
        raise UserError(
            f"{where}: {queries!r:.200} is no WikiSQL query.",
            "Give text2sql-data's wikisql.json; its other sets have another form.",
        )
    aggregate, select, where_clause = match.groups()
    parts = [_CONDITION.fullmatch(p) for p in _AND.split(where_clause)] if where_clause else []
    for sentence in take(record, "sentences", list, where):
        values = take(sentence, "variables", dict, where)
        split = take(sentence, "question-split", str, where)
        if split not in SPLITS:
            raise UserError(f"{where}: question-split {split!r} is none of {', '.join(SPLITS)}.")
        known = all(part is not None and part.group(3) in values for part in parts)
        yield (
            split,
            Question(
                take(sentence, "original", str, where).strip(),
                take(sentence, "table-id", str, where),
                aggregate or "",
                _readable(select),
                tuple(
                    Condition(_readable(part.group(1)), part.group(2), values[part.group(3)])
                    for part in parts
                ),
            )
            if known
            else None,
        )


def _readable(name: str) -> str:
    return name.replace("_", " ").strip().lower()


def _distinct(names: Iterable[str]) -> Sequence[str]:
    """Column names of which SQLite takes no two for one."""
    made: list[str] = []
    for name in names:
        taken = {other.lower() for other in made}
        fresh, number = name, 2
        while fresh.lower() in taken:
            fresh, number = f"{name} {number}", number + 1
        made.append(fresh)
    return made
