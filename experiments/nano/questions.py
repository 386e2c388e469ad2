"""Questions over a schema in varied everyday wording, each with its SQL."""

import random
from collections.abc import Callable
from typing import NamedTuple

from experiments.nano import vocabulary as words
from experiments.nano.schema import Column, Schema, Table

AGGREGATES = {
    "average": "AVG",
    "mean": "AVG",
    "total": "SUM",
    "overall": "SUM",
    "highest": "MAX",
    "largest": "MAX",
    "lowest": "MIN",
    "smallest": "MIN",
}
COMPARISONS = {
    "above": ">",
    "over": ">",
    "below": "<",
    "under": "<",
    "at least": ">=",
    "at most": "<=",
    "exactly": "=",
}


class Question(NamedTuple):
    """One labelled pair.

    Attributes:
      query: everyday wording.
      sql: the query that answers it.
      kind: question type, e.g. `group`.
      uses: private codes, and names of metrics and rules, that the SQL draws on.
    """

    query: str
    sql: str
    kind: str
    uses: frozenset[str]


class _Draft:
    """Collects the parts of one question while they are drawn."""

    def __init__(self, schema: Schema, table: Table, rng: random.Random, values: "Values"):
        self.schema, self.table, self.rng, self.values = schema, table, rng, values
        self.adjective = ""
        self.phrases: list[str] = []
        self.conditions: list[str] = []
        self.uses = {table.code}

    def pick(self, *options: str) -> str:
        return self.rng.choice(options)

    def column(self, *kinds: str) -> Column | None:
        found = self.table.of_kind(*kinds)
        return self.use(self.rng.choice(found)) if found else None

    def use(self, column: Column) -> Column:
        self.uses.add(column.code)
        return column

    def subject(self) -> str:
        return f"{self.adjective} {self.table.word}".strip()

    def maybe_flag(self) -> None:
        flags = self.table.of_kind("flag")
        if flags and self.rng.random() < 0.4:
            flag = self.use(self.rng.choice(flags))
            self.adjective = flag.word
            self.conditions.append(f"{flag.code} = 1")

    def add_condition(self, table: Table | None = None) -> bool:
        """Adds `with price above 20`, `whose city is Oslo`, `since 2019`; False if none fits."""
        table = table or self.table
        columns = [c for c in table.of_kind("number", "text", "date") if c.code not in self.uses]
        if not columns:
            return False
        column = self.use(self.rng.choice(columns))
        relation = self.pick("with", "whose")
        verb = " is" if relation == "whose" else ""
        if column.kind == "number":
            word = self.rng.choice(list(COMPARISONS))
            value = self.values.number(column, self.rng)
            self.phrases.append(f"{relation} {column.word}{verb} {word} {value}")
            self.conditions.append(f"{column.code} {COMPARISONS[word]} {value}")
        elif column.kind == "text":
            value = self.values.text(column, self.rng)
            self.phrases.append(f"{relation} {column.word}{verb} {value}")
            self.conditions.append(f"{column.code} = '{value}'")
        else:
            word = self.pick("since", "before")
            year = self.values.year(self.rng)
            self.phrases.append(f"with {column.word} {word} {year}")
            operator = ">=" if word == "since" else "<"
            self.conditions.append(f"{column.code} {operator} {self.schema.date(year)}")
            self.uses.add("date format")
        return True

    def tail(self) -> str:
        return "".join(" " + p for p in [" and ".join(self.phrases)] if p)

    def where(self) -> str:
        return f" WHERE {' AND '.join(self.conditions)}" if self.conditions else ""


class Values:
    """Literals that questions mention; the company's reads them from its rows instead."""

    def number(self, column: Column, rng: random.Random) -> int:
        """A threshold for a numeric column."""
        return rng.choice(words.NUMBER_VALUES)

    def text(self, column: Column, rng: random.Random) -> str:
        """A value of a text column."""
        return rng.choice(words.TEXTS[column.word])

    def year(self, rng: random.Random) -> int:
        """A year for a date condition."""
        return rng.choice(words.YEARS)


def _listing(d: _Draft) -> tuple[str, str]:
    column = d.column("number", "text", "date")
    query = d.pick("show the {c} of {t}", "list the {c} of all {t}", "what is the {c} of {t}")
    query = query.format(c=column.word, t=d.subject())
    return query + d.tail(), f"SELECT {column.code} FROM {d.table.code}{d.where()}"


def _filter(d: _Draft) -> tuple[str, str]:
    d.add_condition()
    return _listing(d)


def _count(d: _Draft) -> tuple[str, str]:
    if d.rng.random() < 0.7:
        d.add_condition()
    query = d.pick("how many {t} are there", "count the {t}", "what is the number of {t}")
    sql = f"SELECT COUNT ( * ) FROM {d.table.code}{d.where()}"
    return query.format(t=d.subject()) + d.tail(), sql


def _quantity(d: _Draft) -> tuple[str, str]:
    """Word and SQL of something to aggregate: a column, or a metric with its formula."""
    if d.table.metrics and d.rng.random() < 0.5:
        name, formula = d.rng.choice(d.table.metrics)
        d.uses.add(name)
        return name, formula
    column = d.column("number")
    return column.word, column.code


def _aggregate(d: _Draft) -> tuple[str, str]:
    word, formula = _quantity(d)
    if d.rng.random() < 0.6:
        d.add_condition()
    aggregate = d.rng.choice(list(AGGREGATES))
    query = d.pick("what is the {a} {c} of {t}", "give the {a} {c} of {t}", "{a} {c} of {t}")
    query = query.format(a=aggregate, c=word, t=d.subject())
    sql = f"SELECT {AGGREGATES[aggregate]} ( {formula} ) FROM {d.table.code}{d.where()}"
    return query + d.tail(), sql


def _group(d: _Draft) -> tuple[str, str]:
    key = d.column("text")
    if d.rng.random() < 0.5:
        query = d.pick("how many {t} per {k}", "number of {t} for each {k}")
        value = "COUNT ( * )"
        query = query.format(t=d.subject(), k=key.word)
    else:
        word, formula = _quantity(d)
        aggregate = d.rng.choice(list(AGGREGATES))
        query = d.pick("{a} {c} of {t} per {k}", "show the {a} {c} of {t} for each {k}")
        value = f"{AGGREGATES[aggregate]} ( {formula} )"
        query = query.format(a=aggregate, c=word, t=d.subject(), k=key.word)
    sql = f"SELECT {key.code}, {value} FROM {d.table.code}{d.where()} GROUP BY {key.code}"
    return query, sql


def _top(d: _Draft) -> tuple[str, str]:
    column, order = d.column("text", "number"), d.column("number")
    count = d.rng.randint(1, 5)
    most = d.rng.random() < 0.5
    query = d.pick(
        "show the {c} of the {n} {t} with the {m} {o}", "{c} of the {n} {t} with the {m} {o}"
    )
    most_word = d.pick("highest", "largest") if most else d.pick("lowest", "smallest")
    query = query.format(c=column.word, n=count, t=d.subject(), m=most_word, o=order.word)
    direction = "DESC" if most else "ASC"
    sql = (
        f"SELECT {column.code} FROM {d.table.code}{d.where()} "
        f"ORDER BY {order.code} {direction} LIMIT {count}"
    )
    return query, sql


def _join(d: _Draft) -> tuple[str, str]:
    index = d.schema.tables.index(d.table)
    links = [
        (other, key)
        for child, parent, key in d.schema.joins
        for mine, other in ((child, parent), (parent, child))
        if mine == index
    ]
    other_index, key = d.rng.choice(links)
    other = d.schema.tables[other_index]
    counting = d.rng.random() < 0.4
    column = None if counting else d.column("number", "text")
    d.add_condition(other)
    d.uses |= {key, other.code}
    of = d.pick("of", "from", "linked to")
    if counting:
        query = f"how many {d.subject()} {of} {other.word}{d.tail()}"
        selected = "COUNT ( * )"
    else:
        query = f"show the {column.word} of {d.subject()} {of} {other.word}{d.tail()}"
        selected = column.code
    sql = f"SELECT {selected} FROM {d.table.code} JOIN {other.code} USING ( {key} ){d.where()}"
    return query, sql


KINDS: dict[str, Callable[[_Draft], tuple[str, str]]] = {
    "list": _listing,
    "filter": _filter,
    "count": _count,
    "aggregate": _aggregate,
    "group": _group,
    "top": _top,
    "join": _join,
}


def random_question(
    schema: Schema,
    rng: random.Random,
    *,
    kind: str | None = None,
    table: Table | None = None,
    values: Values | None = None,
) -> Question:
    """Draws a question over a schema.

    Args:
      schema: what is asked about.
      rng: source of randomness.
      kind: one of `KINDS`; drawn if None. A kind that the table can't serve becomes `filter`.
      table: the table asked about; drawn if None.
      values: literals to mention.
    """
    table = table or rng.choice(schema.tables)
    kind = kind or rng.choice(list(KINDS))
    index = schema.tables.index(table)
    joined = any(index in (child, parent) for child, parent, _ in schema.joins)
    if (kind == "group" and not table.of_kind("text")) or (kind == "join" and not joined):
        kind = "filter"
    if kind in ("aggregate", "top") and not table.of_kind("number"):
        kind = "filter"
    if kind == "group" and not table.of_kind("number"):
        kind = "count"
    draft = _Draft(schema, table, rng, values or Values())
    if kind != "list":
        draft.maybe_flag()
    query, sql = KINDS[kind](draft)
    return Question(query, sql, kind, frozenset(draft.uses))
