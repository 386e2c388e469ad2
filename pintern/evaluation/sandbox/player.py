"""The process that holds a model's program: runs it, then answers calls of what it defined.

It knows no test. Whatever the program does to this interpreter, all it can say is a value.
"""

import json
import sys
import types
from collections.abc import Callable

from pintern.evaluation.sandbox import wire
from pintern.evaluation.sandbox.confine import confine


def main(arguments: str) -> None:
    """Confines itself, runs the program, and serves until the judge hangs up.

    Args:
      arguments: JSON: `read` and `write` (descriptors), `root` (to forget), `limits` (of
        `confine`), `required` (protections without which nothing is run).
    """
    given = json.loads(arguments)
    incoming, outgoing = given["read"], given["write"]
    sys.path.remove(given["root"])
    protections = confine(**given["limits"])
    missing = [name for name in given["required"] if name not in protections]
    wire.send(outgoing, {"protections": protections, "missing": missing})
    if missing:
        return
    program = wire.receive(incoming)
    # In `sys.modules`, since dataclasses and the like look there for a class's module.
    module = types.ModuleType("program")
    sys.modules["program"] = module
    objects: list[object] = []

    def keep(value: object) -> int:
        objects.append(value)
        return len(objects) - 1

    def run() -> None:
        exec(compile(program, "program.py", "exec"), module.__dict__)

    _answer(outgoing, keep, run)
    while True:
        operation, target, *rest = wire.receive(incoming)
        subject = objects[target] if isinstance(target, int) else None

        def act(operation=operation, target=target, subject=subject, rest=rest) -> object:
            values = [wire.decode(item, objects.__getitem__) for item in rest]
            if operation == "name":
                return module.__dict__[target]
            if operation == "call":
                return subject(*values[0], **values[1])
            if operation == "get":
                return getattr(subject, values[0])
            if operation == "set":
                return setattr(subject, *values)
            return list(subject)

        _answer(outgoing, keep, act)


def _answer(outgoing: int, keep: Callable[[object], int], act: Callable[[], object]) -> None:
    """Sends what `act` returns, or how it fails."""
    try:
        message = {"value": wire.encode(act(), keep)}
    # SystemExit and KeyboardInterrupt too: a program that leaves has no answer.
    except BaseException as error:
        message = {"error": f"{type(error).__name__}: {error}"[:300]}
    wire.send(outgoing, message)
