"""What every benchmark here shares: fair timing, and the machine's two floors.

A floor is the time that the machine needs at least: the work's floating-point operations over the
rate of its fastest matrix product, or the bytes that must be read over its memory's bandwidth. Both
rates are measured in the run that quotes them, because a data sheet says nothing of a shared host.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "transformers", "peft")
_RATE_SIDES = ((512, 768, 3072), (4096, 768, 3072), (2048, 2048, 2048))
_GPU_SIDES = ((8192, 8192, 8192), (16384, 2048, 8192))
_READ_BYTES = {"cpu": 1 << 29, "gpu": 1 << 32}
_QUEUED = 20  # runs of which a GPU is handed one while it is busy with another


class Timing(NamedTuple):
    """Seconds of repeated runs of one side.

    Attributes:
      median: of all of them.
      low: the shortest.
      high: the longest.
      busy: cores that the process kept busy meanwhile; on a machine of others it had no more.
    """

    median: float
    low: float
    high: float
    busy: float

    def scaled(self, factor: float) -> Timing:
        """Of so many times the work."""
        return Timing(self.median * factor, self.low * factor, self.high * factor, self.busy)


class Rate(NamedTuple):
    """A rate of the machine.

    Attributes:
      value: of the fastest, per second.
      by: library to its own best.
    """

    value: float
    by: dict[str, float]


def paired(
    ours: Callable[[], Any],
    peer: Callable[[], Any],
    repeats: int = 5,
    *,
    warm: Callable[[], Any] | None = None,
) -> tuple[Timing, Timing]:
    """Times two callables by turns, so that whatever else the machine does meets both alike.

    Args:
      ours: returns when its work is done.
      peer: likewise.
      repeats: timed runs of each.
      warm: what is run before, untimed; each once if not given.
    """
    warm() if warm else (ours(), peer())
    times = [(spent(ours), spent(peer)) for _ in range(repeats)]
    return tuple(timing(side) for side in zip(*times, strict=True))


def spent(run: Callable[[], Any]) -> tuple[float, float]:
    """Seconds by the clock, and of all cores, of one run."""
    began, worked = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - began, time.process_time() - worked


def timing(times: Iterable[tuple[float, float]]) -> Timing:
    """Of some runs, each as `spent` gives it."""
    clock, worked = zip(*times, strict=True)
    return Timing(statistics.median(clock), min(clock), max(clock), sum(worked) / sum(clock))


def floor_seconds(
    *, flops: float, rate: Rate, size: float = 0.0, band: Rate | None = None
) -> float:
    """The longer of computing `flops` and reading `size` bytes."""
    return max(flops / rate.value, size / band.value if band else 0.0)


_compiled: list[str] = []


@functools.cache
def _count_compilations() -> None:
    import jax

    def listen(event: str, _: float, **__: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            _compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)


def compilations() -> int:
    """Programs that XLA has compiled, or read from its cache, since this was first asked."""
    _count_compilations()
    return len(_compiled)


def matrix_rate() -> Rate:
    """Floating-point operations per second of the fastest matrix product, through XLA and torch:
    float32 on a CPU, bfloat16 on a GPU. The best of several shapes and runs: a floor is no average.
    """
    import jax
    import jax.numpy as jnp

    on_cpu = jax.default_backend() == "cpu"
    dtype, sides = ("float32", _RATE_SIDES) if on_cpu else ("bfloat16", _GPU_SIDES)
    product = jax.jit(lambda x, w: x @ w)
    best = {"XLA": 0.0}
    for m, k, n in sides:
        x, w = (jax.random.normal(jax.random.key(0), s, jnp.dtype(dtype)) for s in ((m, k), (k, n)))
        best["XLA"] = max(best["XLA"], _best(lambda x=x, w=w: product(x, w), 2 * m * k * n))
    if torch := _torch():
        best["torch"] = 0.0
        options = {"dtype": getattr(torch, dtype), "device": "cpu" if on_cpu else "cuda"}
        for m, k, n in sides:
            x, w = torch.randn(m, k, **options), torch.randn(k, n, **options)
            rate = _best(lambda x=x, w=w: x @ w, 2 * m * k * n, wait=_torch_waits)
            best["torch"] = max(best["torch"], rate)
    return Rate(max(best.values()), best)


def bandwidth() -> Rate:
    """Bytes per second at which much is read, half a gigabyte on a CPU and four on a GPU: summed,
    and as a matrix times a vector; through XLA and torch.
    """
    import jax
    import jax.numpy as jnp

    on_cpu = jax.default_backend() == "cpu"
    size = _READ_BYTES["cpu" if on_cpu else "gpu"]
    table = jnp.ones((size // 4096 // 4, 4096), jnp.float32)
    vector = jnp.ones(4096, jnp.float32)
    total, product = jax.jit(jnp.sum), jax.jit(jnp.matmul)
    reads = [lambda: total(table), lambda: product(table, vector)]
    best = {"XLA": max(_best(read, size) for read in reads)}
    if torch := _torch():
        device = "cpu" if on_cpu else "cuda"
        theirs, ones = torch.ones(table.shape, device=device), torch.ones(4096, device=device)
        reads = [theirs.sum, lambda: theirs @ ones]
        best["torch"] = max(_best(read, size, wait=_torch_waits) for read in reads)
    return Rate(max(best.values()), best)


def _best(
    run: Callable[[], Any],
    amount: float,
    repeats: int = 7,
    *,
    wait: Callable[[Any], Any] | None = None,
) -> float:
    import jax

    # A GPU is asked for several at once: else the way to it would count as its work.
    queued = 1 if jax.default_backend() == "cpu" else _QUEUED
    wait = wait or jax.block_until_ready

    def runs() -> None:
        wait([run() for _ in range(queued)][-1])

    runs()
    return amount * queued / min(spent(runs)[0] for _ in range(repeats))


def _torch() -> Any:
    """The module, if there is one that computes where JAX does."""
    import jax

    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(cores())
    return torch if jax.default_backend() == "cpu" or torch.cuda.is_available() else None


def _torch_waits(_: Any) -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def versions() -> str:
    """Date, machine class, and the versions of what is measured, in one line."""
    import jax

    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0]
    kind = processor() if device.platform == "cpu" else device.device_kind
    load = f" · load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    today = datetime.date.today().isoformat()
    return f"{today} · {kind} · Python {platform.python_version()}, {', '.join(found)}{load}"


def processor() -> str:
    """The CPU's name and how many cores of it there are."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text().splitlines()
        name = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), name)
    return f"{cores()} cores of {name}"


def floors_line(rate: Rate, band: Rate) -> str:
    """The two rates, in one line."""
    flops = ", ".join(f"{name} {value / 1e9:,.0f}" for name, value in rate.by.items())
    read = ", ".join(f"{name} {value / 1e9:,.1f}" for name, value in band.by.items())
    return f"matrix rate (GFLOP/s): {flops} · memory (GB/s): {read}"


def peak_mb() -> float:
    """Highest resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Not `ru_maxrss`, which a child that was started by a large process inherits from it.
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Side:
    """One side of a comparison in a process of its own, which works only while it is asked to.

    Peak memory is a process's own, and neither side's threads or allocator meet the other's. What
    runs in it is `serve`.

    Args:
      module: to run with `python -m`.
      arguments: its flags.
    """

    def __init__(self, module: str, *arguments: str):
        self._name = f"{module} {' '.join(arguments)}"
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def ask(self, what: str) -> dict[str, Any]:
        """The answer to a question; returns when it is there."""
        with contextlib.suppress(BrokenPipeError):
            print(what, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            raise RuntimeError(f"{self._name} ended:\n{self._errors.read()[-2000:]}")
        return json.loads(line)

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._errors.close()


def serve(answers: Mapping[str, Callable[[], Any]]) -> None:
    """Answers what `Side.ask` asks, until there is nobody left to ask.

    What the callables print goes to stderr: stdout holds answers alone.
    """
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        for line in sys.stdin:
            print(json.dumps(answers[line.strip()]()), file=out, flush=True)
