"""Chips: what a topology's name stands for, and the rates that their makers publish."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from typing import Any

from pintern.errors import UserError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator, as published: peak rates, which no program reaches.

    Attributes:
      name: of the kind.
      memory: bytes of HBM.
      flops: bfloat16 operations a second.
      memory_rate: bytes a second to HBM.
      link_rate: bytes a second that it sends to other chips, over all its links.
      tpu: whether programs are compiled for it; others are estimated.
    """

    name: str
    memory: int
    flops: float
    memory_rate: float
    link_rate: float
    tpu: bool = False


CHIPS = {
    # Google Cloud's pages of each version; interconnect in Gbit/s a chip there.
    "v5e": Chip("TPU v5e", 16 * GIB, 197e12, 819e9, 1600e9 / 8, tpu=True),
    "v5p": Chip("TPU v5p", 95 * GIB, 459e12, 2765e9, 4800e9 / 8, tpu=True),
    "v6e": Chip("TPU v6e", 32 * GIB, 918e12, 1640e9, 3584e9 / 8, tpu=True),
    # NVIDIA's data sheets, SXM, dense; NVLink is told for both directions together there.
    "a100": Chip("A100 80 GB", 80 * GIB, 312e12, 2039e9, 600e9 / 2),
    "h100": Chip("H100 80 GB", 80 * GIB, 989e12, 3350e9, 900e9 / 2),
    "h200": Chip("H200 141 GB", 140 * GIB, 989e12, 4800e9, 900e9 / 2),
    "b200": Chip("B200 180 GB", 180 * GIB, 2250e12, 8000e9, 1800e9 / 2),
}
# GPUs joined by NVLink; beyond, the network's 400 Gbit/s a GPU are the narrow place.
_NVLINK_GROUP = 8
_NETWORK_RATE = 400e9 / 8


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips that work together.

    Attributes:
      name: as given, `v5e:4x4`, `2xv5e:4x4` or `h100:8`.
      chip: of which kind.
      count: how many.
      devices: to compile for; None where programs are estimated.
    """

    name: str
    chip: Chip
    count: int
    devices: tuple[Any, ...] | None


def read_topology(text: str) -> Topology:
    """`v5e:4x4` (chips along each axis of the torus), `2xv5e:4x4` (two such slices), or `h100:8`.

    Raises:
      UserError: an unknown kind, a shape that there isn't, or libtpu is missing.
    """
    found = re.fullmatch(r"(?:([1-9]\d*)x)?([a-z]\w*):(\d+(?:x\d+)*)", text)
    if not found or found.group(2) not in CHIPS:
        raise UserError(
            f"--topology={text} is not known.",
            "Expected KIND:SHAPE, as v5e:4x4 or h100:8, or SLICESxKIND:SHAPE, as 2xv5e:4x4; kinds: "
            f"{', '.join(CHIPS)}.",
        )
    slices, chip, shape = found.group(1), CHIPS[found.group(2)], found.group(3)
    count = math.prod(int(side) for side in shape.split("x"))
    if count < 1:
        raise UserError(f"--topology={text} has no chips.")
    if chip.tpu:
        devices = _tpu_devices(f"{found.group(2)}:{shape}", count, slices=int(slices or 1))
        return Topology(text, chip, len(devices), devices)
    if slices:
        raise UserError(
            f"--topology={text}: slices are of TPUs.", f"Give {found.group(2)}:COUNT for GPUs."
        )
    if count > _NVLINK_GROUP:
        chip = dataclasses.replace(chip, link_rate=_NETWORK_RATE)
    return Topology(text, chip, count, None)


def _tpu_devices(text: str, count: int, *, slices: int) -> tuple[Any, ...]:
    import importlib.util

    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "Compiling for a TPU needs its compiler, libtpu, which is not installed.",
            f"pip install 'libtpu{_pinned_libtpu()}' (the version that this JAX goes with), or "
            "pip install '.[plan]'.",
        )
    # There is no TPU here: ask no metadata server, and say nothing of it.
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # of this machine, which has none: only for silence
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_MIN_LOG_LEVEL": "3",
        "TPU_STDERR_LOG_LEVEL": "3",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    # A slice smaller than a host's four chips.
    options: dict[str, Any] = {"chips_per_host_bounds": (1, 1, 1)} if count == 1 else {}
    if slices > 1:
        options["num_slices"] = slices
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=text, **options)
    except Exception as error:  # the runtime's own error type, of any status
        said = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
        raise UserError(
            f"--topology={text}: {said}",
            "Give the shape of a slice that exists, as v5e:2x2, v5e:16x16 or v5p:4x4x4.",
        ) from error
    return tuple(topology.devices)


def _pinned_libtpu() -> str:
    """The version of libtpu that the installed JAX asks for."""
    import importlib.metadata

    for line in importlib.metadata.requires("jax") or ():
        found = re.match(r"libtpu\s*\(?([=<>~!][^;)]*)", line)
        if found:
            return found.group(1).strip()
    return ""
