"""Plain Python values as bytes, between two processes that don't trust each other.

JSON with tags. Nothing that is read can run code, as unpickling could; what isn't plain stays where
it is and crosses as a number (`opaque`). Subclasses arrive as the class they extend: a `Counter` as
a `dict`, a named tuple as a `tuple`, and an `int` that claims to equal everything as an `int`.
"""

import json
import os
from collections.abc import Callable

MAX_MESSAGE = 1 << 22
_PLAIN_INT = 1 << 62
_TYPES = {t.__name__: t for t in (bool, int, float, str, list, tuple, set, dict, complex, bytes)}
_SEQUENCES = {"tuple": tuple, "list": list, "set": set, "frozenset": frozenset}


class Closed(Exception):  # noqa: N818 (the other side's end, not a mistake of the code)
    """The other process has ended, or has sent what is no message."""


def send(descriptor: int, message: object) -> None:
    """Writes one message of what JSON holds.

    Raises:
      Closed: nobody reads any more, or the message is longer than `MAX_MESSAGE`.
    """
    body = json.dumps(message).encode()
    if len(body) > MAX_MESSAGE:
        raise Closed(f"a message of {len(body)} bytes; the limit is {MAX_MESSAGE}")
    remaining = memoryview(len(body).to_bytes(4, "big") + body)
    while remaining:
        try:
            remaining = remaining[os.write(descriptor, remaining) :]
        except BrokenPipeError as error:
            raise Closed("the other process has ended") from error


def receive(descriptor: int) -> object:
    """Reads one message.

    Raises:
      Closed: the other process has ended, or has sent what is no message.
    """
    length = int.from_bytes(_read(descriptor, 4), "big")
    if length > MAX_MESSAGE:
        raise Closed(f"a message of {length} bytes; the limit is {MAX_MESSAGE}")
    try:
        return json.loads(_read(descriptor, length))
    except (ValueError, RecursionError) as error:
        raise Closed("what was sent is no message") from error


def _read(descriptor: int, length: int) -> bytes:
    found = bytearray()
    while len(found) < length:
        part = os.read(descriptor, min(length - len(found), 1 << 16))
        if not part:
            raise Closed("the other process has ended")
        found += part
    return bytes(found)


def encode(value: object, opaque: Callable[[object], int]) -> object:
    """What JSON can hold of a value.

    Args:
      value: anything.
      opaque: the number under which something that isn't plain is known on the other side.
    """
    if value is None or value is True or value is False:
        return value
    # By the base's own methods: a subclass may print or convert as something else than it equals.
    if isinstance(value, int):
        value = int.__int__(value)
        return value if abs(value) < _PLAIN_INT else {"int": hex(value)}
    if isinstance(value, float | str):
        return float.__float__(value) if isinstance(value, float) else str.__str__(value)
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, dict):
        pairs = [[encode(k, opaque), encode(v, opaque)] for k, v in value.items()]
        return {"dict": pairs}
    for name, kind in _SEQUENCES.items():
        if isinstance(value, kind):
            return {name: [encode(item, opaque) for item in value]}
    if isinstance(value, type) and _TYPES.get(value.__name__) is value:
        return {"type": value.__name__}
    return {"opaque": opaque(value)}


def decode(message: object, opaque: Callable[[int], object]) -> object:
    """The value that `encode` was given.

    Args:
      message: from `receive`; whatever it is, no code of the other side's runs.
      opaque: what stands for something that stayed on the other side.

    Raises:
      Closed: it isn't what `encode` returns.
    """
    if not isinstance(message, dict):
        if isinstance(message, list):
            raise Closed("what was sent is no value")
        return message
    try:
        [(tag, content)] = message.items()
        if tag == "int":
            return int(content, 16)
        if tag == "complex":
            return complex(*content)
        if tag == "bytes":
            return bytes.fromhex(content)
        if tag == "type":
            return _TYPES[content]
        if tag == "dict":
            return {decode(key, opaque): decode(item, opaque) for key, item in content}
        if tag == "opaque":
            return opaque(int(content))
        return _SEQUENCES[tag](decode(item, opaque) for item in content)
    except (ValueError, TypeError, KeyError) as error:
        raise Closed(f"what was sent is no value: {error}") from error
