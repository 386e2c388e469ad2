"""Small companies: a schema drawn from a number, its rows, labelled pairs and a test set.

A company has two templates: `template.txt` tells the whole schema, `partial.txt` half of each
table's columns and no metric. The rest must be learned from the labelled pairs, all of which any
test question can draw on. Codes of different companies come from one vocabulary and may coincide.
"""

import dataclasses
import hashlib
import json
import random
import shutil
import tempfile
from pathlib import Path

from experiments.company.database import make_rows
from experiments.company.task import Pools, Task, records, write_task
from experiments.nano.schema import Schema, random_schema, render_template

NAMES = ("amber", "birch", "cedar", "dune", "ember")
TABLES, COLUMNS, TOLD = 4, 6, 3
TRAIN, TEST = 256, 100
# No bare listings: small tables have too few of them for both sets.
KINDS = ("filter", "count", "aggregate", "top", "join", "group")


def make_company(number: int) -> Task:
    """One company: the same number gives the same task.

    Args:
      number: of the company, and seed of all its draws.
    """
    rng = random.Random(f"company {number}")
    schema = random_schema(rng, TABLES, COLUMNS)
    rows = make_rows(number, schema)
    pools = Pools(rows, rng, schema, KINDS)
    test = pools.test(TEST, lambda _: True)
    asked = {question.sql for question in test}
    train = pools.balanced(TRAIN, lambda question: question.sql not in asked)
    return Task(render_template(schema, rules=()), rows, train, [], test, [], schema)


def partial_template(schema: Schema) -> str:
    """What tells the first `TOLD` columns of each table, and no metric."""
    told = tuple(
        dataclasses.replace(table, columns=table.columns[:TOLD], metrics=())
        for table in schema.tables
    )
    return render_template(dataclasses.replace(schema, tables=told), rules=())


def company_folder(number: int, root: Path = Path("runs/companies")) -> Path:
    """Folder of a company's files, written if it isn't there.

    Its name follows from what the files hold, so that a changed generator makes a new folder and a
    study run on the old one notices. Files appear all at once: two processes may ask for the same.

    Args:
      number: which company.
      root: folder of all companies.
    """
    task = make_company(number)
    content = json.dumps([task.template, partial_template(task.schema), records(task), task.rows])
    folder = root / f"{NAMES[number]}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    if not folder.exists():
        root.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=root, prefix=f".{NAMES[number]}-"))
        write_task(task, made)
        (made / "partial.txt").write_text(partial_template(task.schema), encoding="utf-8")
        try:
            made.rename(folder)
        except OSError:  # another process was first; its files are the same
            shutil.rmtree(made)
    return folder


def company_fields(number: int, *, partial: bool = False) -> dict[str, object]:
    """What makes a company the task of a config, by dotted names; its files are written if need be.

    Args:
      number: which company.
      partial: behind the template that tells half of the schema.
    """
    return fields_of(company_folder(number), "partial.txt" if partial else "template.txt")


def fields_of(folder: Path, template: str) -> dict[str, object]:
    """As `company_fields`, of a company's folder and one of its templates."""
    return {
        "task.kind": "files",
        "task.template": str(folder / template),
        "task.train": str(folder / "train.jsonl"),
        "task.test": str(folder / "test.jsonl"),
        "task.database": str(folder / "company.sqlite"),
        "task.metric": "sql",
        "task.query_format": "Question: {query}\nSQL:",
    }
