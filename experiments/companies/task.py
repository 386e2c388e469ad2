"""Small companies: a schema drawn from a number, its rows, labelled pairs and a test set.

All test questions draw only on what labelled pairs show, so that a soft prompt has a chance to
learn what it needs. Codes of different companies are drawn from one vocabulary and may coincide.
"""

import random
import shutil
import tempfile
from pathlib import Path

from ml_collections import ConfigDict

from experiments.company.database import make_rows
from experiments.company.task import Pools, Task, write_task
from experiments.nano.schema import random_schema, render_template

NAMES = ("amber", "birch", "cedar", "dune", "ember")
TABLES, COLUMNS = 2, 4
TRAIN, TEST = 256, 100
# No bare listings: two small tables have too few of them for both sets.
KINDS = ("filter", "count", "aggregate", "top", "join", "group")


def make_company(number: int, *, tables: int = TABLES, columns: int = COLUMNS) -> Task:
    """One company: the same number (and sizes) gives the same task.

    Args:
      number: of the company, and seed of all its draws.
      tables: in its database.
      columns: of each table, without the join key.
    """
    rng = random.Random(f"company {number}")
    schema = random_schema(rng, tables, columns)
    rows = make_rows(number, schema)
    pools = Pools(rows, rng, schema, KINDS)
    test = pools.test(TEST, lambda _: True)
    asked = {question.sql for question in test}
    train = pools.balanced(TRAIN, lambda question: question.sql not in asked)
    return Task(render_template(schema, rules=()), rows, train, [], test, [], schema)


def company_folder(number: int, root: Path = Path("runs/companies")) -> Path:
    """Folder of a company's files, written if it isn't there.

    Files appear all at once, so that two processes may ask for the same company.

    Args:
      number: which company.
      root: folder of all companies.
    """
    folder = root / NAMES[number]
    if not folder.exists():
        root.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=root, prefix=f".{NAMES[number]}-"))
        write_task(make_company(number), made)
        try:
            made.rename(folder)
        except OSError:  # another process was first; its files are the same
            shutil.rmtree(made)
    return folder


def set_company(config: ConfigDict, number: int) -> None:
    """Points a config's task at a company."""
    folder = company_folder(number)
    config.task.kind = "files"
    config.task.template = str(folder / "template.txt")
    config.task.train = str(folder / "train.jsonl")
    config.task.test = str(folder / "test.jsonl")
    config.task.database = str(folder / "company.sqlite")
    config.task.metric = "sql"
    config.task.query_format = "Question: {query}\nSQL:"
