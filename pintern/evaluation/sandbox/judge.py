"""The process that holds the tests: runs them, calling the program in the player's process.

The names of the program's that the tests use are stand-ins here. A call sends plain arguments and
gets a plain value back; what isn't plain stays with the player, and equals nothing here but itself.
Every comparison is made in this process, by Python's own `==` on Python's own types.
"""

import json
import os
import sys

from pintern.evaluation.sandbox import wire
from pintern.evaluation.sandbox.confine import confine


class ProgramError(Exception):
    """The program raised; holds the name and the message."""


class Player:
    """The other end of the pipes."""

    def __init__(self, incoming: int, outgoing: int):
        self._incoming, self._outgoing = incoming, outgoing

    def hello(self, program: str) -> dict:
        """The protections in force there; then runs the program, if none is missing."""
        found = wire.receive(self._incoming)
        if not found["missing"]:
            wire.send(self._outgoing, program)
            self.answer()
        return found

    def ask(self, operation: str, target: int | str, *values: object) -> object:
        """What an operation gives on something that the program has."""
        encoded = [wire.encode(value, _number) for value in values]
        wire.send(self._outgoing, [operation, target, *encoded])
        return self.answer()

    def answer(self) -> object:
        """The next value.

        Raises:
          ProgramError: in its place.
        """
        message = wire.receive(self._incoming)
        if not isinstance(message, dict) or len(message) != 1:
            raise wire.Closed("what was sent is no answer")
        if "error" in message:
            raise ProgramError(str(message["error"]))
        return wire.decode(message.get("value"), lambda number: StandIn(self, number))


class StandIn:
    """Something that stays with the player: a function, a class, an object."""

    __slots__ = ("_number", "_player")

    def __init__(self, player: Player, number: int):
        object.__setattr__(self, "_player", player)
        object.__setattr__(self, "_number", number)

    def __call__(self, *arguments: object, **named: object) -> object:
        """Calls it there."""
        return self._player.ask("call", self._number, arguments, named)

    def __getattr__(self, name: str) -> object:
        return self._player.ask("get", self._number, name)

    def __setattr__(self, name: str, value: object) -> None:
        self._player.ask("set", self._number, name, value)

    def __iter__(self):
        return iter(self._player.ask("list", self._number))


def _number(value: object) -> int:
    if isinstance(value, StandIn):
        return object.__getattribute__(value, "_number")
    raise TypeError(f"a test can't hand the program a {type(value).__name__}")


def main(arguments: str) -> None:
    """Confines itself, runs the tests, and writes the verdict to stdout.

    Args:
      arguments: JSON, as for the player. The job comes on stdin, as JSON: `program`, `setup` and
        `imports` (source), `names` (of the program's, for the tests), `tests` (sources).
    """
    given = json.loads(arguments)
    sys.path.remove(given["root"])
    job = json.loads(sys.stdin.buffer.read())
    # Tests may print.
    verdict = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    protections = confine(**given["limits"])
    missing = [name for name in given["required"] if name not in protections]
    player = Player(given["read"], given["write"])
    try:
        if not missing:
            found = player.hello(job["program"])
            missing = found["missing"]
            protections = [name for name in protections if name in found["protections"]]
        if missing:
            reason, detail = "unprotected", f"no {' and no '.join(missing)}"
        else:
            reason, detail = _judge(job, player)
    except wire.Closed as error:
        reason, detail = "stopped", str(error)
    except BaseException as error:
        reason, detail = "error", _shown(error)
    found = {"reason": reason, "detail": detail, "protections": list(protections)}
    os.write(verdict, json.dumps(found).encode())


def _judge(job: dict, player: Player) -> tuple[str, str]:
    names: dict[str, object] = {"__name__": "tests"}
    exec(compile(job["imports"], "imports", "exec"), names)
    exec(compile(job["setup"], "setup", "exec"), names)
    for name in job["names"]:
        try:
            names[name] = player.ask("name", name)
        except ProgramError:
            continue  # the test that uses it says so
    for test in job["tests"]:
        try:
            exec(compile(test, "test", "exec"), names)
        except AssertionError as error:
            return "mismatch", f"{test} {error}".strip()[:300]
    return "right", ""


def _shown(error: BaseException) -> str:
    if isinstance(error, ProgramError):
        return str(error)
    return f"{type(error).__name__}: {error}"[:300]
