"""Compiles a program for chips that aren't here and reads off what it takes."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from launch.planning.chips import Chip
from launch.planning.hlo import Collective, Program

# The parts of memory, in the order in which they are shown.
PARTS = ("weights", "adapter", "optimizer", "batch", "cache")


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one program takes, on one chip.

    Attributes:
      name: of the program.
      parts: bytes of what it is given, by part.
      temporaries: bytes that it needs while it runs: activations, gathered weights, logits.
      outputs: bytes of results that don't take the place of an argument.
      other: bytes of the program itself, and what tiled layouts add to the parts.
      flops: of matrix products, in one run.
      memory_bytes: read and written, in one run.
      collectives: exchanges with other chips; None where they weren't told apart.
      wire_bytes: bytes sent to other chips, in one run.
      tokens: that all chips together read, or make, in one run.
      seconds: that compiling took; None for an estimate.
      cpu_seconds: of all cores meanwhile: what it costs where others use them too.
      uncounted: kernels whose FLOPs aren't in `flops`.
      refused: what the compiler said where the program doesn't fit.
    """

    name: str
    parts: Mapping[str, int]
    tokens: int
    temporaries: int = 0
    outputs: int = 0
    other: int = 0
    flops: float = 0.0
    memory_bytes: float = 0.0
    collectives: tuple[Collective, ...] | None = None
    wire_bytes: float = 0.0
    seconds: float | None = None
    cpu_seconds: float = 0.0
    uncounted: tuple[str, ...] = ()
    refused: str | None = None

    @property
    def total(self) -> int:
        """Bytes on a chip while the program runs."""
        return sum(self.parts.values()) + self.temporaries + self.outputs + self.other

    def fits(self, chip: Chip) -> bool:
        """Whether it fits: by the compiler's word, and for an estimate with a tenth to spare."""
        room = chip.memory if self.seconds is not None else 0.9 * chip.memory
        return self.refused is None and self.total <= room

    def estimated_seconds(self, chip: Chip) -> float:
        """Of one run, at the published rates: arithmetic or memory, whichever takes longer, and
        then the exchanges, as if nothing overlapped them.
        """
        busy = max(self.flops / chip.flops, self.memory_bytes / chip.memory_rate)
        return busy + self.wire_bytes / chip.link_rate


def measure(
    name: str,
    lower: Callable[..., Any],
    args: tuple[Any, ...],
    parts: Mapping[str, Any],
    *,
    tokens: int,
    loop_trips: int = 1,
    effort: float = 0.0,
) -> tuple[Measured, Any]:
    """Compiles, and reads memory, FLOPs and exchanges off the result.

    Args:
      name: of the program.
      lower: of the jitted function.
      args: shapes, with places on the chips to compile for.
      parts: which of them is which part of memory.
      tokens: see `Measured`.
      loop_trips: see `hlo.Program`.
      effort: of the compiler; 0 is its default, −1 the least, which takes a fraction of the time.

    Returns:
      the measurement, and the shapes and places of the results; None where it doesn't fit.
    """
    held = {part: device_bytes(tree) for part, tree in parts.items()}
    lowered = lower(*args)
    options = {}
    if effort:
        options = {"exec_time_optimization_effort": effort, "memory_fitting_effort": effort}
    began, worked = time.perf_counter(), time.process_time()
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        refused = re.search(r"Ran out of memory[^\n]*?(Used [^\n]*? hbm)", str(error))
        if refused is None:
            raise
        seconds = time.perf_counter() - began
        used = re.search(r"Used ([\d.]+)([KMGT]) of", refused.group(1))
        scale = dict(zip("KMGT", (2**10, 2**20, 2**30, 2**40), strict=True))[used.group(2)]
        rest = round(float(used.group(1)) * scale) - sum(held.values())
        measured = Measured(
            name, held, tokens, temporaries=max(rest, 0), seconds=seconds, refused=refused.group(1)
        )
        return measured, None
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - worked
    memory = compiled.memory_analysis()
    program = Program(compiled.as_text(), loop_trips=loop_trips)
    collectives = tuple(program.collectives())
    measured = Measured(
        name,
        held,
        tokens,
        temporaries=memory.temp_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        other=memory.generated_code_size_in_bytes
        + max(memory.argument_size_in_bytes - sum(held.values()), 0),
        flops=program.flops(),
        memory_bytes=program.memory_bytes(),
        collectives=collectives,
        wire_bytes=sum(one.wire_bytes for one in collectives),
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        uncounted=tuple(sorted(program.opaque())),
    )
    results = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        lowered.out_info,
        compiled.output_shardings,
    )
    return measured, results


def device_bytes(tree: Any) -> int:
    """Bytes of a tree on one device; what has no place is whole on each."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        if not hasattr(leaf, "shape"):
            continue
        shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
        total += int(np.prod(shape)) * leaf.dtype.itemsize
    return total
