"""A config as the command line gives it: a file, and single fields beside it."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from pintern.config.fields import default_config
from pintern.errors import UserError
from pintern.python_file import call_in_file

_BOOLEANS = {"true": True, "false": False, "1": True, "0": False}
_EXPECTED = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
ALL_FIELDS = "`python -m pintern.config` lists all fields."


def read_config_file(given: str) -> ConfigDict:
    """What `get_config()` of `FILE`, or of `FILE:ARGUMENT`, returns; not checked yet.

    Raises:
      UserError: no such file, a mistake in it (by its line), or one that returns no config.
    """
    mend = "It should return default_config() of pintern.config with what the experiment changes."
    config = call_in_file(given, "get_config", flag="config", mend=mend)
    if not isinstance(config, ConfigDict):
        what = "None" if config is None else f"a {type(config).__name__}"
        raise UserError(f"--config={given}: get_config() returns {what}.", mend)
    return config


def change_fields(config: ConfigDict, changes: Sequence[str]) -> None:
    """Sets the fields of `GROUP.FIELD=VALUE` texts; several of a list are its items.

    Raises:
      UserError: names what is no field, or a value of another type than the field's.
    """
    lists: dict[str, tuple[Any, ...]] = {}
    for change in changes:
        field, _, text = change.partition("=")
        value = _value(field, text, _default(field))
        if isinstance(value, tuple):
            value = lists[field] = lists.get(field, ()) + value
        name, _, last = field.rpartition(".")
        group = config[name] if name else config
        if not isinstance(group, ConfigDict):
            raise UserError(f"config.{name} is {group!r}; it is a group of fields.")
        with group.ignore_type(), group.unlocked():
            group[last] = value


def _default(field: str) -> Any:
    config = default_config()
    groups = {name: config[name] for name in config if isinstance(config[name], ConfigDict)}
    names = [name for name in config if name not in groups]
    names += [f"{group}.{name}" for group, fields in groups.items() for name in fields]
    if field in groups:
        raise UserError(
            f"config.{field} is a group of fields.",
            f"Change one of them: --config.{field}.FIELD=VALUE.",
            ALL_FIELDS,
        )
    if field not in names:
        near = difflib.get_close_matches(field, names, n=1)
        hint = [f"Did you mean config.{near[0]}?"] if near else []
        raise UserError(f"config.{field} is not a field.", *hint, ALL_FIELDS)
    group, _, last = field.rpartition(".")
    return (config[group] if group else config)[last]


def _value(field: str, text: str, default: Any) -> Any:
    kind = type(default)
    if kind is tuple:
        return _list(text)
    try:
        return _BOOLEANS[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        raise UserError(
            f"--config.{field}={text}: expected {_EXPECTED[kind]}, e.g. {default}."
        ) from None


def _list(text: str) -> tuple[Any, ...]:
    """Items of `1,0.5,0`, `("a", "b")` or `a,b`."""
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, TypeError, ValueError):
        value = [item.strip() for item in text.split(",") if item.strip()]
    return tuple(value) if isinstance(value, tuple | list) else (value,)
