"""Exact set match (Spider, Yu et al. 2018, section 5): two queries are the same clause by clause.

The rules are those of Spider's own script at its defaults: constants and DISTINCT don't count,
aliases are resolved, columns that foreign keys tie together are one, and the parts of a clause are
a set, except under GROUP BY and ORDER BY. Of FROM the tables count and not the conditions of joins;
of LIMIT that there is one. Where the script can't read a query, or has no rule for it, there are
deviations: nested queries and HAVING are compared by the same sets, not by the order of their text;
a left join isn't an inner one; a column that another is compared with counts, as does the direction
of each column under ORDER BY; and any expression of SQLite's is read, where the script fails on
most.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from pintern.errors import UserError

if TYPE_CHECKING:
    from sqlglot import exp

Clauses = tuple  # of hashable parts, nested
MAX_SQL = 20_000  # characters
_VALUE = "value"


@dataclasses.dataclass(frozen=True)
class Schema:
    """Tables of a database.

    Attributes:
      tables: name of each, with the names of its columns.
      foreign_keys: pairs of `table.column` that hold the same thing.
    """

    tables: tuple[tuple[str, tuple[str, ...]], ...]
    foreign_keys: tuple[tuple[str, str], ...] = ()

    @functools.cached_property
    def columns(self) -> Mapping[str, tuple[str, ...]]:
        """Columns of each table, all in lower case."""
        return {t.lower(): tuple(c.lower() for c in columns) for t, columns in self.tables}

    @functools.cached_property
    def same(self) -> Mapping[str, str]:
        """The one name that stands for each column that foreign keys tie to others."""
        groups: list[set[str]] = []
        for pair in self.foreign_keys:
            tied = {name.lower() for name in pair}
            for group in [group for group in groups if group & tied]:
                tied |= group
                groups.remove(group)
            groups.append(tied)
        return {name: min(group) for group in groups for name in group}


def clauses_match(schema: Schema, predicted: str, gold: str) -> str:
    """`right`, `mismatch`, or `error` where the predicted query can't be read.

    Args:
      schema: of the database that both are about.
      predicted: whatever a model wrote.
      gold: the answer.

    Raises:
      UserError: the gold query can't be read.
    """
    expected = _clauses_of(schema, gold)
    if expected is None:
        raise UserError(f"Gold query {gold!r} isn't one readable SELECT.", "Drop the record.")
    found = _clauses_of(schema, predicted)
    if found is None:
        return "error"
    return "right" if found == expected else "mismatch"


@functools.lru_cache(maxsize=4096)
def _clauses_of(schema: Schema, sql: str) -> Clauses | None:
    import sqlglot
    from sqlglot import exp

    if len(sql) > MAX_SQL:
        return None
    try:
        [statement] = sqlglot.parse(sql, read="sqlite")
        if not isinstance(statement, exp.Query):
            return None
        return _query(statement, _Scope(schema, {}, None))
    except (sqlglot.errors.SqlglotError, ValueError, RecursionError):
        return None
    # Half a query may pass the parser and give a tree with parts missing (`count(DISTINCT)`).
    except (AttributeError, IndexError, TypeError):
        return None


@dataclasses.dataclass(frozen=True)
class _Scope:
    """What names mean within one query.

    Attributes:
      schema: of the database.
      aliases: table of each name under which one stands in FROM; "" for a nested query.
      outer: the query around this one.
    """

    schema: Schema
    aliases: Mapping[str, str]
    outer: _Scope | None

    def column(self, table: str, name: str, quoted: bool) -> tuple:
        """One column, by the table that it belongs to."""
        scope: _Scope | None = self
        while scope is not None:
            for alias, real in scope.aliases.items():
                known = name in self.schema.columns.get(real, ())
                if (table == alias) if table else known:
                    full = f"{real}.{name}"
                    return ("column", self.schema.same.get(full, full))
            scope = scope.outer
        # SQLite reads a name in double quotes that is no column as text; so do Spider's queries.
        return (_VALUE,) if quoted and not table else ("column", f"{table}.{name}")


def _query(node: exp.Expression, outer: _Scope) -> Clauses:
    from sqlglot import exp

    while isinstance(node, exp.Subquery | exp.Paren):
        node = node.this
    given = node.args.get("with_") or node.args.get("with")
    if given:
        named = [(held.alias.lower(), _query(held.this, outer)) for held in given.expressions]
        node.set(given.arg_key, None)
        return ("with", _bag(iter(named)), _query(node, outer))
    if isinstance(node, exp.SetOperation):
        kind = f"{type(node).__name__.lower()}{'' if node.args.get('distinct', True) else ' all'}"
        first = node
        while not isinstance(first, exp.Select):
            first = first.this
        sides = (_query(node.this, outer), _query(node.expression, outer))
        order = _order(node, _scope_of(first, outer))
        return (kind, *sides, order, node.args.get("limit") is not None)
    if not isinstance(node, exp.Select):
        raise ValueError(f"{type(node).__name__} is no query")
    scope = _scope_of(node, outer)
    group, having = node.args.get("group"), node.args.get("having")
    return (
        "select",
        _bag(_value(item, scope) for item in node.expressions),
        _bag(_tables(node, scope)),
        _conditions(node.args.get("where"), scope),
        # In their order and with their tables: of the script's two looks at them, the closer one.
        tuple(_value(item, scope) for item in group.expressions) if group else (),
        _conditions(having, scope),
        _order(node, scope),
        node.args.get("limit") is not None,
    )


def _bag(items: Iterator[tuple]) -> frozenset:
    return frozenset(Counter(items).items())


def _sources(node: exp.Select) -> list[tuple[str, exp.Expression]]:
    """What stands in FROM, each with the side of its join."""
    first = node.args.get("from_") or node.args.get("from")
    joins = node.args.get("joins") or []
    return ([("", first.this)] if first else []) + [
        (join.side.lower(), join.this) for join in joins
    ]


def _scope_of(node: exp.Select, outer: _Scope) -> _Scope:
    from sqlglot import exp

    aliases = {}
    for _, source in _sources(node):
        name = source.name.lower() if isinstance(source, exp.Table) else ""
        aliases[(source.alias or name).lower()] = name
    return _Scope(outer.schema, aliases, outer)


def _tables(node: exp.Select, scope: _Scope) -> Iterator[tuple]:
    from sqlglot import exp

    for side, source in _sources(node):
        if isinstance(source, exp.Table):
            yield side, source.name.lower()
        else:
            yield side, _query(source, scope)


def _order(node: exp.Expression, scope: _Scope) -> tuple:
    order = node.args.get("order")
    if not order:
        return ()
    return tuple((_value(o.this, scope), bool(o.args.get("desc"))) for o in order.expressions)


def _conditions(clause: exp.Expression | None, scope: _Scope) -> tuple:
    """The conditions as a bag, and which of AND and OR join them."""
    from sqlglot import exp

    leaves: list[tuple] = []
    joined: set[str] = set()

    def walk(node: exp.Expression) -> None:
        if isinstance(node, exp.Paren):
            walk(node.this)
        elif isinstance(node, exp.And | exp.Or):
            joined.add(type(node).__name__)
            walk(node.this)
            walk(node.expression)
        else:
            leaves.append(_value(node, scope))

    if clause is not None:
        walk(clause.this)
    return _bag(iter(leaves)), frozenset(joined)


def _value(node: exp.Expression, scope: _Scope) -> tuple:
    """Any expression; constants are all one."""
    from sqlglot import exp

    if isinstance(node, exp.Alias | exp.Paren):
        return _value(node.this, scope)
    if isinstance(node, exp.Distinct):
        return _value(node.expressions[0], scope)
    if isinstance(node, exp.Star):
        return ("column", "*")
    if isinstance(node, exp.Column):
        if isinstance(node.this, exp.Star):
            return ("column", "*")
        return scope.column(
            node.table.lower(), node.name.lower(), bool(node.this.args.get("quoted"))
        )
    if isinstance(node, exp.Literal | exp.Boolean | exp.Null):
        return (_VALUE,)
    if isinstance(node, exp.Neg) and isinstance(node.this, exp.Literal):
        return (_VALUE,)
    if isinstance(node, exp.Query):
        return _query(node, scope)
    name = node.name.lower() if isinstance(node, exp.Anonymous) else type(node).__name__
    parts = []
    for key, held in node.args.items():
        if held is True:
            parts.append((key, held))  # as of NOT LIKE
        if held and isinstance(held, str | enum.Enum):  # a name, or the type of a CAST
            parts.append((key, str(held).lower()))
        items = held if isinstance(held, list) else [held]
        inner = tuple(_value(item, scope) for item in items if isinstance(item, exp.Expression))
        # A list of constants is one constant: `IN (1, 2)` is `IN (3)`.
        if inner:
            parts.append((key, inner if set(inner) != {(_VALUE,)} else (_VALUE,)))
    return (name, *parts)
