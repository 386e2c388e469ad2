"""What to do next with a Cloud TPU VM, from what is seen of it: a pure function.

    request (queued resource)      VM            workers                      next
    none                           none                                       create
    waiting, provisioning          any                                        wait
    suspended, failed              any                                        delete (then create)
    active                         preempted                                  delete (then create)
    active                         ready         one can't be reached         wait; then delete
    active                         ready         without the code             install
    active                         ready         not started                  start
    active                         ready         running                      follow
    active                         ready         running another command      fail
    active                         ready         one failed, others run       stop
    active                         ready         all ended                    finish, or fail

A VM that was there before (`existing`) is never created or deleted.
"""

from __future__ import annotations

import dataclasses
import enum
import re

from launch.common import STOPPED

UNREACHABLE_LIMIT = 6  # looks in a row
FAILURE_LIMIT = 3  # requests, or calls of one action, that fail in a row

_WAITING = {"CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "SUSPENDING"}
_WAITING |= {"DELETING", "STATE_UNSPECIFIED"}
_VM_WAITING = {"CREATING", "STARTING", "RESTARTING", "REIMAGING", "REPAIRING", "DELETING"}
_VM_WAITING |= {"STOPPING", "UNHIDING", "STATE_UNSPECIFIED", "UNKNOWN"}
_HOPELESS = re.compile(
    r"quota|permission|PERMISSION_DENIED|INVALID_ARGUMENT|not authori[sz]ed|billing|"
    r"unrecognized arguments|reauthentication|login",
    re.IGNORECASE,
)


class Do(enum.Enum):
    """Actions."""

    CREATE = "create"
    WAIT = "wait"
    DELETE = "delete"
    INSTALL = "install"
    START = "start"
    FOLLOW = "follow"
    STOP = "stop"
    FINISH = "finish"
    FAIL = "fail"


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a look shows.

    Attributes:
      request: state of the queued resource; None if there is none.
      vm: state of the VM; None if there is none.
      workers: state of the run on each worker, in order: "absent" (code not installed), "ready",
        "running", "differs" (running by another command), "exited N", "busy RUN" (another run's
        processes), or "unreachable". None at all where none is looked at, or none is known: a VM
        that is READY without any counts as one that can't be reached.
      trouble: what the last action, or the request, failed with.
    """

    request: str | None = None
    vm: str | None = None
    workers: tuple[str, ...] = ()
    trouble: str = ""


@dataclasses.dataclass(frozen=True)
class History:
    """What a launcher has to remember between looks.

    Attributes:
      existing: the VM is the user's own, there before.
      created: this launcher has made a request.
      started: this launcher has started or followed the run on this VM.
      failures: requests or actions that failed in a row.
      unreachable: looks in a row that missed a worker.
    """

    existing: bool = False
    created: bool = False
    started: bool = False
    failures: int = 0
    unreachable: int = 0


@dataclasses.dataclass(frozen=True)
class Action:
    """What to do, why, and for FAIL the exit status."""

    do: Do
    why: str
    status: int = 0


def decide(seen: Seen, history: History) -> tuple[Action, History]:
    """The next action, and the history with it."""
    action = _decide(seen, history)
    changes: dict[str, object] = {}
    reached = bool(seen.workers) and "unreachable" not in seen.workers
    if action.do in (Do.CREATE, Do.DELETE):
        # Of a new VM nothing is known.
        changes |= {"started": False, "unreachable": 0}
        changes |= {"created": True} if action.do is Do.CREATE else {}
    elif action.do in (Do.START, Do.FOLLOW):
        changes["started"] = True
    mine = history.existing or seen.request == "ACTIVE"
    if mine and seen.vm == "READY" and not reached and action.do is Do.WAIT:
        changes["unreachable"] = history.unreachable + 1
    elif reached:
        changes["unreachable"] = 0
    if seen.trouble or (seen.request == "FAILED" and history.created):
        changes["failures"] = history.failures + 1
    elif reached:
        changes["failures"] = 0
    return action, dataclasses.replace(history, **changes)


def _decide(seen: Seen, history: History) -> Action:
    if seen.trouble and seen.request != "FAILED":
        if _HOPELESS.search(seen.trouble):
            return Action(Do.FAIL, seen.trouble, 1)
        if history.failures >= FAILURE_LIMIT:
            return Action(Do.FAIL, f"{seen.trouble} ({history.failures + 1} times)", 1)
    if history.existing:
        if seen.vm in (None, "PREEMPTED", "TERMINATED", "STOPPED", "HIDDEN"):
            said = "does not exist" if seen.vm is None else f"is {seen.vm}"
            return Action(Do.FAIL, f"the VM {said}; --existing neither creates nor starts one", 1)
        return _on_vm(seen, history)
    if seen.request is None:
        if seen.vm is not None:
            return Action(
                Do.FAIL,
                "a VM of this name exists that no queued resource made; add --existing to use it",
                1,
            )
        return Action(Do.CREATE, "there is no queued resource of this name")
    if seen.request in _WAITING:
        return Action(Do.WAIT, f"the queued resource is {seen.request}")
    if seen.request == "FAILED":
        # One from an earlier launch tells nothing about now.
        if history.created and _HOPELESS.search(seen.trouble):
            return Action(Do.FAIL, f"the queued resource failed: {seen.trouble}", 1)
        if history.created and history.failures >= FAILURE_LIMIT:
            said = f"{history.failures + 1} queued resources failed in a row: {seen.trouble}"
            return Action(Do.FAIL, said, 1)
        return Action(Do.DELETE, f"the queued resource failed: {seen.trouble or 'no reason given'}")
    if seen.request == "SUSPENDED":
        return Action(Do.DELETE, "the queued resource is SUSPENDED: its VM was taken away")
    if seen.request != "ACTIVE":
        known = f"the queued resource is {seen.request} (a state that is not known here)"
        return Action(Do.WAIT, known)
    if seen.vm in (None, "PREEMPTED", "TERMINATED", "STOPPED", "HIDDEN"):
        return Action(Do.DELETE, f"the VM is {seen.vm or 'gone'}")
    return _on_vm(seen, history)


def _on_vm(seen: Seen, history: History) -> Action:
    if seen.vm != "READY":
        known = "" if seen.vm in _VM_WAITING else " (a state that is not known here)"
        return Action(Do.WAIT, f"the VM is {seen.vm}{known}")
    states = seen.workers
    lost = [i for i, state in enumerate(states) if state == "unreachable"]
    if lost or not states:
        which = f"worker {', '.join(map(str, lost))}" if states else "its workers"
        if history.unreachable < UNREACHABLE_LIMIT:
            return Action(Do.WAIT, f"{which} can't be reached by ssh")
        if history.existing:
            return Action(Do.FAIL, f"{which} can't be reached by ssh", 1)
        return Action(Do.DELETE, f"{which} can't be reached by ssh, {UNREACHABLE_LIMIT + 1} times")
    busy = [state.partition(" ")[2] for state in states if state.startswith("busy")]
    if busy:
        return Action(Do.FAIL, f"the VM is busy with another run ({busy[0]})", 1)
    if "differs" in states:
        said = "the run is there already, with another command or other --env: end it first, or"
        return Action(Do.FAIL, f"{said} attach to it by the line that started it", 1)
    codes = {i: int(s.split()[1]) for i, s in enumerate(states) if s.startswith("exited")}
    failed = {i: code for i, code in codes.items() if code not in (0, STOPPED)}
    running = [i for i, state in enumerate(states) if state == "running"]
    if failed and running:
        i, code = next(iter(failed.items()))
        return Action(Do.STOP, f"worker {i} ended with exit status {code}, others still run")
    if failed and history.started:
        i, code = next(iter(failed.items()))
        return Action(Do.FAIL, f"worker {i} ended with exit status {code}", code)
    if "absent" in states:
        return Action(Do.INSTALL, "the code is not installed")
    if len(codes) == len(states) and history.started and STOPPED not in codes.values():
        return Action(Do.FINISH, "the command has ended on all workers")
    if running and "ready" not in states:
        return Action(Do.FOLLOW, "the command is running")
    return Action(Do.START, "the command is not running on all workers")
