"""Several processes, one run: whether there are any is told by the environment alone.

`initialize()` is called once by an entry point that trains, before any device is used. What it
looks at, in this order:

  JAX_COORDINATOR_ADDRESS, PINTERN_NUM_PROCESSES, PINTERN_PROCESS_ID
      set by `launch.local` and, for GPUs, by `launch.gke`; anybody may set them;
  a Slurm step or an Open MPI job of more than one task;
  a slice of several TPU hosts (TPU_WORKER_HOSTNAMES, MEGASCALE_NUM_SLICES, as GKE sets them);
  TPU chips in this machine: a Cloud TPU VM, whose metadata name the other hosts.

In the last three cases JAX finds the addresses itself. Anything else is a plain single host, where
nothing happens.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pintern.errors import UserError

if TYPE_CHECKING:
    import numpy as np

ADDRESS = "JAX_COORDINATOR_ADDRESS"
NUM_PROCESSES = "PINTERN_NUM_PROCESSES"
PROCESS_ID = "PINTERN_PROCESS_ID"
STOPPED_STATUS = "PINTERN_STOPPED_STATUS"

T = TypeVar("T")

# A process that is gone is noticed after this long without a collective that fails at once.
_HEARTBEAT_SECONDS = 30


def detect(environment: Mapping[str, str], *, tpu_chips: bool = False) -> str | None:
    """What says that there are several processes: "pintern", "slurm", "openmpi" or "tpu".

    "tpu_vm" says that there may be, None that there aren't.

    Args:
      environment: the environment's variables.
      tpu_chips: whether this machine holds TPU chips.
    """
    if NUM_PROCESSES in environment:
        return "pintern"
    # Inside `sbatch` or `salloc`, outside `srun`, there is a job but no step.
    if _number(environment, "SLURM_STEP_NUM_TASKS") > 1 and "SLURM_STEP_NODELIST" in environment:
        return "slurm"
    if _number(environment, "OMPI_COMM_WORLD_SIZE") > 1:
        return "openmpi"
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES", "")
    if "," in hosts or _number(environment, "MEGASCALE_NUM_SLICES") > 1:
        return "tpu"
    # GKE names a single host, too; a Cloud TPU VM names none in its environment.
    if tpu_chips and not hosts and "TPU_SKIP_MDS_QUERY" not in environment:
        return "tpu_vm"
    return None


def initialize() -> None:
    """Connects this process with the others of its run, if there are any.

    Raises:
      UserError: variables that contradict each other or can't be read.
    """
    found = detect(os.environ, tpu_chips=_has_tpu_chips())
    if found is None:
        return
    import jax

    explicit = _explicit(os.environ) if found == "pintern" else {}
    # Gloo is what JAX's CPU backend has for collectives over the network; others take no notice.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        with _signals_end_it():
            jax.distributed.initialize(heartbeat_timeout_seconds=_HEARTBEAT_SECONDS, **explicit)
    except (ValueError, OSError):
        # Chips, but no cluster that JAX knows and no metadata server: a single host.
        if found != "tpu_vm":
            raise


@contextmanager
def _signals_end_it() -> Iterator[None]:
    """Takes Python's handlers off while JAX connects, since no Python runs for as long.

    A process whose peers were stopped would wait for them for minutes. Behind it they are set anew
    in any case: JAX has taken SIGTERM, for a notice that nobody here asks it for.
    """
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    for each, handler in before.items():
        if callable(handler):  # else it is ignored, or ends the process already
            signal.signal(each, signal.SIG_DFL)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def is_first() -> bool:
    """Whether this is the process that writes what is written once."""
    return count() == 1 or _jax().process_index() == 0


def agree(value: bool) -> bool:
    """The first process's answer, on all of them: what they read of a folder may differ in time."""
    if count() == 1:
        return value
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(int(value)))


def any_of(value: bool) -> bool:
    """Whether any process says so; every one has to ask at the same point."""
    if count() == 1:
        return value
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(int(value)).any())


def from_first(function: Callable[[], T]) -> T:
    """Calls it in the first process alone; all get what it returns, or raise its UserError.

    Args:
      function: returns what JSON can hold.
    """
    if count() == 1:
        return function()
    import numpy as np

    said: dict[str, Any] = {}
    if is_first():
        try:
            said["value"] = function()
        except UserError as error:
            said["error"] = str(error)
    text = json.dumps(said).encode()
    size = int(broadcast(np.array(len(text), np.int32)))
    # Of few sizes, since each is a program to compile; JSON doesn't mind the spaces.
    size = max(1 << (size - 1).bit_length(), 4096)
    sent = text.ljust(size) if is_first() else bytes(size)
    said = json.loads(broadcast(np.frombuffer(sent, np.uint8)).tobytes())
    if "error" in said:
        raise UserError(said["error"])
    return said["value"]


def broadcast(array: np.ndarray) -> np.ndarray:
    """The first process's array, bit for bit, on all of them; theirs are of the same shape."""
    if count() == 1:
        return array
    import numpy as np
    from jax.experimental import multihost_utils

    # What arrives is a sum with the others' zeros, in which −0.0 would become 0.0.
    raw = np.frombuffer(array.tobytes(), np.uint8)
    sent = np.asarray(multihost_utils.broadcast_one_to_all(raw))
    return np.frombuffer(sent.tobytes(), array.dtype).reshape(array.shape)


def first_before_others(function: Callable[[], T]) -> T:
    """Calls it in the first process, and then in the others, which find what that one wrote.

    What it raises there as a UserError all raise; it returns what JSON can hold.
    """
    found = from_first(function)
    return found if is_first() else function()


def stopped_status() -> int:
    """Exit status of a run that a signal stopped after a checkpoint; 0 unless a launcher says.

    A launcher has to tell a run that is complete from one that waits to be started again.
    """
    return _number(os.environ, STOPPED_STATUS)


def _explicit(environment: Mapping[str, str]) -> dict[str, object]:
    missing = [name for name in (ADDRESS, PROCESS_ID) if not environment.get(name)]
    if missing:
        raise UserError(
            f"{NUM_PROCESSES}={environment[NUM_PROCESSES]} is set, {' and '.join(missing)} not.",
            "Start the command by `python -m launch.local`, or set all three.",
        )
    count, this = _number(environment, NUM_PROCESSES), _number(environment, PROCESS_ID)
    if not 0 <= this < count:
        raise UserError(
            f"{PROCESS_ID}={this} is not one of {NUM_PROCESSES}={count} processes.",
            f"Processes are numbered from 0 to {NUM_PROCESSES} − 1.",
        )
    return {
        "coordinator_address": environment[ADDRESS],
        "num_processes": count,
        "process_id": this,
        # All there is to know is given: ask no cluster. JAX_LOCAL_DEVICE_IDS still counts.
        "cluster_detection_method": "deactivate",
    }


def _jax() -> Any:
    import jax  # late: a command's --help doesn't need it

    return jax


def count() -> int:
    """How many processes train together."""
    return _jax().process_count()


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "0")
    try:
        return int(value)
    except ValueError:
        raise UserError(
            f"{name}={value!r} in the environment is no whole number.", "Unset or mend it."
        ) from None


def _has_tpu_chips() -> bool:
    """Device files of TPU chips; VFIO ones may be other hardware's, which JAX looks into."""
    import importlib.util

    if importlib.util.find_spec("libtpu") is None:
        return False
    return any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))
