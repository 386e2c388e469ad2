"""Where everything lies on a mesh of devices: the one place that says so.

The mesh has three axes. Over `data` the rows of a batch are split; over `fsdp` rows and weights
both, so that a layer's weights are gathered as it runs; over `tensor` the heads and inner widths.
A parameter's axes have logical names, and a rule says on which axis of the mesh a name lies. An
axis that the mesh doesn't divide evenly stays whole.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from pintern.errors import UserError
from pintern.models.decoder import Decoder
from pintern.models.stream import ShardingOf

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # what a batch's rows are split over
RULES = {"model": "fsdp", "inner": "tensor", "vocab": "tensor"}

# Path of a parameter to the names of its last axes; the first pattern that matches counts.
_LOGICAL: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"embedding", ("vocab", "model")),
    (r"head", ("model", "vocab")),
    (r"position_table|project_in|project_out", (None, None)),
    # What ends in the residual stream: attention's and the MLP's output, experts' too.
    (r"blocks\..*(output|down)\.kernel", ("inner", "model")),
    (r"blocks\..*(output|down)\.kernel_scale|blocks\..*\.down_scale", (None,)),
    (r"blocks\.mlp\.down", ("inner", "model")),
    (r"blocks\.mlp\.(gate|up)|blocks\..*\.kernel", ("model", "inner")),
    (r"blocks\.mlp\.(gate|up)_scale|blocks\..*\.kernel_scale", ("inner",)),
)


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of all devices.

    Args:
      sizes: see `mesh_sizes`.
      devices: those of machines that aren't here, to compile for; None is what this run has.
    """
    devices = jax.devices() if devices is None else devices
    shape = tuple(mesh_sizes(sizes, len(devices)).values())
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def mesh_sizes(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Devices along each of `AXES`.

    Args:
      sizes: the same; −1, on one of them, is what the others leave.
      count: how many devices there are.

    Raises:
      UserError: the sizes don't multiply to that.
    """
    asked = {axis: int(sizes[axis]) for axis in AXES}
    shown = ", ".join(f"{axis}={size}" for axis, size in asked.items())
    free = [axis for axis, size in asked.items() if size == -1]
    known = math.prod(size for size in asked.values() if size != -1)
    if len(free) == 1 and known and count % known == 0:
        asked[free[0]] = count // known
    if len(free) > 1 or math.prod(asked.values()) != count:
        raise UserError(
            f"config.mesh is {shown}; there are {count} devices.",
            "The sizes must multiply to their number; one of them may be -1, the rest.",
        )
    return asked


def sharding_of(mesh: Mesh) -> ShardingOf:
    """Where each parameter of a decoder lies."""

    def of(path: str, shape: tuple[int, ...]) -> NamedSharding:
        names = next((n for pattern, n in _LOGICAL if re.fullmatch(pattern, path)), ())
        axes = [RULES.get(name) if name else None for name in names]
        whole = (None,) * (len(shape) - len(axes))
        return NamedSharding(mesh, PartitionSpec(*whole, *_dividing(mesh, axes, shape)))

    return of


def mesh_of(decoder: Decoder) -> Mesh:
    """The mesh that a loaded decoder lies on; of its one device, where it was given none."""
    sharding = decoder.embedding.get_value().sharding
    if isinstance(sharding, NamedSharding):
        return sharding.mesh
    (device,) = sharding.device_set
    return Mesh(np.array(device).reshape(1, 1, 1), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def lora_sharding(mesh: Mesh, name: str, matrix: str, shape: tuple[int, ...]) -> NamedSharding:
    """Where A `[layer, in, rank]` or B `[layer, rank, out]` of a module lies: as its kernel does.

    Args:
      mesh: the mesh.
      name: of the module (`attention.query`).
      matrix: `a` or `b`.
      shape: of the matrix.
    """
    kernel = sharding_of(mesh)(f"blocks.{name}.kernel", (1, mesh.size, mesh.size)).spec
    axes = (None, kernel[1], None) if matrix == "a" else (None, None, kernel[2])
    return NamedSharding(mesh, PartitionSpec(*_dividing(mesh, axes, shape)))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def rows_over(mesh: Mesh) -> int:
    """How many devices the rows of a batch are split over."""
    return math.prod(mesh.shape[axis] for axis in ROWS)


def rows_sharding(mesh: Mesh, row_axis: int) -> NamedSharding:
    """A batch's array whose rows lie along `row_axis`."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * row_axis, ROWS))


def _dividing(
    mesh: Mesh, axes: tuple[str | None, ...] | list[str | None], shape: tuple[int, ...]
) -> list[str | None]:
    sizes = shape[len(shape) - len(axes) :]
    return [
        axis if axis and size % mesh.shape[axis] == 0 else None
        for axis, size in zip(axes, sizes, strict=True)
    ]
