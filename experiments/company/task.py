"""The company task: a labelled pool, an unlabelled log and a test set of two slices.

*seen* questions draw on what labelled pairs show; an *unseen* one needs at least one column,
metric or table that no labelled pair draws on, so that the prompt alone tells of it.
"""

import functools
import json
import random
import re
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from experiments.company.database import Rows, RowValues, fill, make_rows, write_database
from experiments.company.schema import COMPANY, draws_on, held_out
from experiments.nano.questions import Question, random_question
from experiments.nano.schema import Schema, render_template
from pintern.errors import UserError

TRAIN, LOG, SLICE = 400, 1500, 100
CANDIDATES = 12
# Listings differ by little more than their column, so there are few; groupings not many more.
KINDS = ("filter", "count", "aggregate", "top", "join") * 3 + ("group", "group", "list")
# How a formula leaves flagged rows out, e.g. ` * ( 1 - zer )`.
HOUSE_RULE = re.compile(r" \* \( 1 - \w+ \)")

Fits = Callable[[Question], bool]
Things = Callable[[Question], frozenset[str]]


class Task(NamedTuple):
    """What the company's files hold.

    Attributes:
      template: the recurring prompt.
      rows: the database.
      train: labelled pairs.
      log: questions whose SQL is not given away.
      seen: test questions that draw only on what `train` shows.
      unseen: test questions that draw on something held out.
      schema: what is asked about.
    """

    template: str
    rows: Rows
    train: list[Question]
    log: list[Question]
    seen: list[Question]
    unseen: list[Question]
    schema: Schema = COMPANY


def conditions(sql: str) -> list[str]:
    """The conditions of a query's WHERE clause."""
    clause = sql.partition(" WHERE ")[2].partition(" GROUP BY ")[0].partition(" ORDER BY ")[0]
    return clause.split(" AND ") if clause else []


def is_telling(question: Question, database: sqlite3.Connection) -> bool:
    """Whether the answer is neither empty nor NULL nor 0, nor a value that the query itself names.

    "The city of customers whose city is Oslo" would be answered by Oslo.
    """
    rows = database.execute(question.sql).fetchall()
    selected = question.sql.split()[1]
    named = any(c.startswith(f"{selected} = ") for c in conditions(question.sql))
    return bool(rows) and rows != [(0,)] and not named and all(None not in row for row in rows)


def needs_every_part(question: Question, database: sqlite3.Connection) -> bool:
    """Whether leaving out any one condition, or a formula's house rule, changes the answer."""
    found = conditions(question.sql)
    answer = sorted(database.execute(question.sql).fetchall())
    shorter = [HOUSE_RULE.sub("", question.sql)] if HOUSE_RULE.search(question.sql) else []
    for i in range(len(found)):
        rest = found[:i] + found[i + 1 :]
        clause = f" WHERE {' AND '.join(rest)}" if rest else ""
        shorter.append(question.sql.replace(f" WHERE {' AND '.join(found)}", clause))
    return all(sorted(database.execute(sql).fetchall()) != answer for sql in shorter)


class Pools:
    """Draws the pools one after another; a query text that one has is not drawn again."""

    def __init__(
        self,
        rows: Rows,
        rng: random.Random,
        schema: Schema = COMPANY,
        kinds: tuple[str, ...] = KINDS,
    ):
        self.rng, self.values, self.schema, self.kinds = rng, RowValues(rows), schema, kinds
        self.database = sqlite3.connect(":memory:")
        fill(self.database, rows, schema)
        self.taken: dict[str, str] = {}  # query text to SQL

    def draw(self, kinds: tuple[str, ...], fits: Fits) -> Question:
        """A question that fits and whose text is new, of a kind drawn anew at each try."""
        while True:
            kind = self.rng.choice(kinds)
            question = random_question(self.schema, self.rng, kind=kind, values=self.values)
            fitting = question.kind == kind and question.query not in self.taken
            if fitting and fits(question) and is_telling(question, self.database):
                return question

    def balanced(self, count: int, fits: Fits, things: Things | None = None) -> list[Question]:
        """Questions of each kind in turn, that use all `things` about equally often.

        Of several candidates, the one is taken that has the thing used least so far.
        """
        things = things or functools.partial(draws_on, schema=self.schema)
        used: Counter[str] = Counter()
        taken = []
        for i in range(count):
            kinds = (self.kinds[i % len(self.kinds)],)
            candidates = [self.draw(kinds, fits) for _ in range(CANDIDATES)]
            best = min(candidates, key=lambda q: min(used[thing] for thing in things(q)))
            used.update(things(best))
            self.taken[best.query] = best.sql
            taken.append(best)
        return taken

    def test(self, count: int, fits: Fits, things: Things | None = None) -> list[Question]:
        """One slice: as `balanced`, but with no condition or house rule idle and no SQL twice."""

        def testable(question: Question) -> bool:
            new = fits(question) and question.sql not in self.taken.values()
            return new and needs_every_part(question, self.database)

        return self.balanced(count, testable, things)

    def log(self, count: int) -> list[Question]:
        """Questions about everything, as they come."""
        taken = []
        for _ in range(count):
            question = self.draw(self.kinds, lambda _: True)
            self.taken[question.query] = question.sql
            taken.append(question)
        return taken


def make_task(seed: int) -> Task:
    """Draws rows and questions; no query text occurs twice, and no test SQL in a labelled pair.

    Args:
      seed: the same seed gives the same task.
    """
    rows = make_rows(seed)
    pools = Pools(rows, random.Random(seed + 1))
    hidden = held_out()

    def is_open(question: Question) -> bool:
        return not draws_on(question) & hidden

    seen = pools.test(SLICE, is_open)
    asked = {question.sql for question in seen}
    train = pools.balanced(TRAIN, lambda q: is_open(q) and q.sql not in asked)
    shown = frozenset().union(*(draws_on(question) for question in train))
    unseen = pools.test(SLICE, lambda q: bool(draws_on(q) & hidden), lambda q: draws_on(q) - shown)
    return Task(render_template(COMPANY), rows, train, pools.log(LOG), seen, unseen)


def records(task: Task) -> dict[str, list[dict[str, str]]]:
    """The lines of train.jsonl, log.jsonl and test.jsonl."""

    def pair(name: str, i: int, question: Question, part: str) -> dict[str, str]:
        return {
            "id": f"{name}-{i:04d}",
            "query": question.query,
            "completion": question.sql,
            "slice": part,
        }

    parts = [(q, "seen") for q in task.seen] + [(q, "unseen") for q in task.unseen]
    return {
        "train.jsonl": [pair("train", i, q, "seen") for i, q in enumerate(task.train)],
        "log.jsonl": [{"id": f"log-{i:04d}", "query": q.query} for i, q in enumerate(task.log)],
        "test.jsonl": [pair("test", i, q, part) for i, (q, part) in enumerate(parts)],
    }


def write_task(task: Task, directory: Path) -> None:
    """Writes template.txt, train.jsonl, log.jsonl, test.jsonl and company.sqlite.

    Raises:
      UserError: `directory` can't be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(
            f"--out={directory} is not a directory.", "Name a new or existing directory."
        ) from error
    (directory / "template.txt").write_text(task.template, encoding="utf-8")
    for name, lines in records(task).items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (directory / name).write_text(text, encoding="utf-8")
    write_database(directory / "company.sqlite", task.rows, task.schema)
