"""Spider (Yu et al., 2018): a question to one of many databases, answered by SQL.

The data aren't part of this project; the user gives the folder of the public release. Which
database a question is about varies, so its schema stands in the query. What recurs, and is to be
internalised, are the instructions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pintern.errors import UserError
from pintern.prompts.task import Example, PromptFormat, Task, read_template
from pintern.tasks.sources import Row, read_json, take

TEMPLATE = Path(__file__).parents[1] / "assets" / "spider" / "template.txt"


def spider_task(folder: str) -> Task:
    """Train on `train_spider.json`, test on `dev.json`, whose databases are others.

    Args:
      folder: holds those two, `tables.json` and `database/<name>/<name>.sqlite`.

    Raises:
      UserError: no folder given or found, a missing or odd file, or a test question whose database
        isn't there.
    """
    if not folder:
        raise UserError(
            "config.task.data is empty; the Spider data are not part of this project.",
            "Pass --config.task.data=FOLDER, the folder with train_spider.json and database/.",
        )
    root = Path(folder)
    schemas = {
        record["db_id"]: _schema(record, root / "tables.json")
        for record in _read(
            root / "tables.json", db_id=str, table_names_original=list, column_names_original=list
        )
    }
    train = _examples(root, "train_spider.json", "train", schemas)
    test = _examples(root, "dev.json", "dev", schemas)
    for example in test:
        if not Path(example.facts["database"]).is_file():
            raise UserError(
                f"{example.facts['database']} isn't there; question {example.id} is about it.",
                "The release's folder database/ holds one folder per database.",
            )
    return Task(
        name="spider",
        template=read_template(TEMPLATE),
        format=PromptFormat(query="{query}\nSQL:", completion=" {completion}", example_end="\n\n"),
        train=train,
        test=test,
        metric="clauses",
        further_metrics=("sql",),
        note=(
            f"Spider: train {len(train)} (train_spider.json; train_others.json is not used), test "
            f"{len(test)} (dev.json: the test set isn't public with its answers)."
        ),
    )


def _examples(
    root: Path, name: str, side: str, schemas: Mapping[str, Mapping[str, Any]]
) -> tuple[Example, ...]:
    examples = []
    for number, record in enumerate(
        _read(root / name, db_id=str, question=str, query=str), start=1
    ):
        database = record["db_id"]
        if database not in schemas:
            raise UserError(f"{root / name}, record {number}: tables.json has no {database!r}.")
        schema = schemas[database]
        examples.append(
            Example(
                query=f"{schema_text(database, schema)}\nQuestion: {_one_line(record['question'])}",
                completion=_one_line(record["query"]).rstrip("; "),
                id=f"{side}-{number}",
                facts={
                    "database": str(root / "database" / database / f"{database}.sqlite"),
                    "schema": schema,
                },
            )
        )
    return tuple(examples)


def schema_text(name: str, schema: Mapping[str, Any]) -> str:
    """A schema as the query shows it: a line per table, and one of the foreign keys.

    Args:
      name: of the database.
      schema: `tables` (name to columns) and `foreign_keys` (pairs of `table.column`).
    """
    lines = [f"Database: {name}"]
    lines += [f"{table}({', '.join(columns)})" for table, columns in schema["tables"].items()]
    if schema["foreign_keys"]:
        lines.append("Joins: " + ", ".join(f"{a} = {b}" for a, b in schema["foreign_keys"]))
    return "\n".join(lines)


def _schema(record: Mapping[str, Any], where: Path) -> dict[str, Any]:
    names, columns = record["table_names_original"], record["column_names_original"]
    try:
        full = [f"{names[table]}.{column}" for table, column in columns]
        keys = tuple((full[a], full[b]) for a, b in record.get("foreign_keys", ()))
    except (IndexError, TypeError, ValueError) as error:
        raise UserError(
            f"{where}: {record['db_id']!r} has a column or a foreign key that fits no table "
            f"({error}).",
            "A column is [number of its table, name], a foreign key two numbers of columns.",
        ) from error
    return {
        "tables": {
            name: tuple(column for owner, column in columns if owner == table)
            for table, name in enumerate(names)
        },
        "foreign_keys": keys,
    }


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _read(path: Path, **fields: type) -> Sequence[Row]:
    records = read_json(path)
    if not records:
        raise UserError(f"{path} holds no records.", "Get the file again.")
    for number, record in enumerate(records, start=1):
        for field, kind in fields.items():
            take(record, field, kind, f"{path}, record {number}")
    return records
