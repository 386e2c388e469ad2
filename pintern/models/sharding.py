"""Where everything lies on a mesh of devices: the one place that says so.

The mesh has three axes. Over `data` the rows of a batch are split; over `fsdp` rows and weights
both, so that a layer's weights are gathered as it runs; over `tensor` the heads and inner widths.
Several TPU slices lie along `data`. A parameter's axes have logical names, and a rule says on which
axis of the mesh a name lies. An axis that the mesh doesn't divide evenly stays whole.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import (
    AbstractMesh,
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    Sharding,
    SingleDeviceSharding,
)
from jaxtyping import Array, Float

from pintern.errors import UserError

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # what a batch's rows are split over
RULES = {"model": "fsdp", "inner": "tensor", "vocab": "tensor"}

# Parameter path and shape to where it lies, on all devices that hold a part of it.
ShardingOf = Callable[[str, tuple[int, ...]], Sharding]

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


def on_one_device(path: str, shape: tuple[int, ...]) -> Sharding:
    """Everything on the default device."""
    return SingleDeviceSharding(jax.devices()[0])


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of all devices.

    Args:
      sizes: see `mesh_sizes`.
      devices: those of machines that aren't here, to compile for; None is what this run has.

    Raises:
      UserError: see `mesh_sizes`; or slices that `data` can't be split over.
    """
    devices = jax.devices() if devices is None else devices
    shape = tuple(mesh_sizes(sizes, len(devices)).values())
    types = (AxisType.Auto,) * len(AXES)
    # A described topology of one slice has no such attribute.
    on_tpu = devices[0].platform == "tpu"
    slices = len({getattr(d, "slice_index", 0) for d in devices}) if on_tpu else 1
    if slices == 1:
        return jax.make_mesh(shape, AXES, axis_types=types, devices=devices)
    data, *within = shape
    if data % slices:
        raise UserError(
            f"config.mesh.data is {data}; the devices are {slices} TPU slices.",
            f"Give a multiple of {slices}: between slices the network is slow, and only sums of "
            "gradients may cross it.",
        )
    grid = mesh_utils.create_hybrid_device_mesh(
        (data // slices, *within), (slices, 1, 1), devices=devices
    )
    return Mesh(grid, AXES, axis_types=types)


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


def sharding_of(mesh: Mesh | AbstractMesh) -> ShardingOf:
    """Where each parameter of a decoder lies."""

    def of(path: str, shape: tuple[int, ...]) -> NamedSharding:
        return NamedSharding(mesh, _spec(mesh, path, shape))

    return of


def _spec(mesh: Mesh | AbstractMesh, path: str, shape: tuple[int, ...]) -> PartitionSpec:
    names = next((n for pattern, n in _LOGICAL if re.fullmatch(pattern, path)), ())
    axes = [RULES.get(name) if name else None for name in names]
    whole = (None,) * (len(shape) - len(axes))
    return PartitionSpec(*whole, *_dividing(mesh, axes, shape))


def mesh_of(parameter: jax.Array) -> Mesh:
    """The mesh that a parameter lies on; of its one device, where it was given none."""
    if isinstance(parameter.sharding, NamedSharding):
        return parameter.sharding.mesh
    (device,) = parameter.sharding.device_set
    return Mesh(np.array(device).reshape(1, 1, 1), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def lora_sharding(
    mesh: Mesh | AbstractMesh, name: str, matrix: str, shape: tuple[int, ...]
) -> NamedSharding:
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


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def rows_over(mesh: Mesh | AbstractMesh) -> int:
    """How many devices the rows of a batch are split over."""
    return math.prod(mesh.shape[axis] for axis in ROWS)


def rows_sharding(mesh: Mesh | AbstractMesh, row_axis: int) -> NamedSharding:
    """A batch's array whose rows lie along `row_axis`."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * row_axis, ROWS))


def fetch(array: jax.Array | np.ndarray) -> np.ndarray:
    """The whole array on this host, from wherever its parts lie; every process has to ask."""
    here = not isinstance(array, jax.Array) or array.is_fully_addressable
    if here or array.is_fully_replicated:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


# ── what is computed on the way: these say where it lies while a function is traced for a mesh ──


def traced_on(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, in which `split_hidden` and its like hold. On one device they say nothing."""
    if mesh.size == 1:
        return function

    @functools.wraps(function)
    def on_mesh(*args: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return on_mesh


def gathered(parameter: Float[Array, ...], path: str) -> Float[Array, ...]:
    """A parameter as it is used: gathered over `fsdp`, of one layer at a time in the scan.

    Left to itself the compiler would move activations instead where they are the smaller, logits
    among them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return parameter
    spec = _spec(mesh, path, parameter.shape)
    spec = PartitionSpec(*(None if axis == "fsdp" else axis for axis in spec))
    return jax.lax.with_sharding_constraint(parameter, spec)


def split_hidden(
    hidden: Float[Array, "group row slot model"],
) -> Float[Array, "group row slot model"]:
    """The residual stream, split by rows; by slots where the rows don't go round (a prefix)."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return hidden
    parts = rows_over(mesh)
    axes: tuple[Any, ...] = (None, None, ROWS) if hidden.shape[2] % parts == 0 else ()
    if hidden.shape[1] % parts == 0:
        axes = (None, ROWS)
    return jax.lax.with_sharding_constraint(hidden, PartitionSpec(*axes))


def whole_heads(
    x: Float[Array, "group row slot heads dim"],
) -> Float[Array, "group row slot heads dim"]:
    """Queries, keys or values, split by heads; never within one, whose halves rotary positions mix.

    Where devices outnumber the heads, every device has them all.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    heads = "tensor" if x.shape[3] % mesh.shape["tensor"] == 0 else None
    others = (PartitionSpec.UNCONSTRAINED,) * 3
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*others, heads, None))


def whole_slots(
    kv: Float[Array, "group kv_head row slot dim"],
) -> Float[Array, "group kv_head row slot dim"]:
    """Keys or values, split by heads and rows: whoever looks at them looks at every slot."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return kv
    heads = "tensor" if kv.shape[1] % mesh.shape["tensor"] == 0 else None
    rows = ROWS if kv.shape[2] % rows_over(mesh) == 0 else None
    return jax.lax.with_sharding_constraint(kv, PartitionSpec(None, heads, rows))


def split_vocab(
    logits: Float[Array, "*batch vocab"],
) -> Float[Array, "*batch vocab"]:
    """Logits, split by rows and by the vocabulary: they are never whole anywhere."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or logits.ndim != 4:
        return logits
    rows = ROWS if logits.shape[1] % rows_over(mesh) == 0 else None
    vocab = "tensor" if logits.shape[-1] % mesh.shape["tensor"] == 0 else None
    return jax.lax.with_sharding_constraint(logits, PartitionSpec(None, rows, None, vocab))


def _dividing(
    mesh: Mesh | AbstractMesh,
    axes: tuple[str | None, ...] | list[str | None],
    shape: tuple[int, ...],
) -> list[str | None]:
    sizes = shape[len(shape) - len(axes) :]
    return [
        axis if axis and size % mesh.shape[axis] == 0 else None
        for axis, size in zip(axes, sizes, strict=True)
    ]
