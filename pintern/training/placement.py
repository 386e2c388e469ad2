"""Lays a run's state and batches out over the mesh."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from pintern.adapters.adapter import Adapter, LoraPair
from pintern.models.sharding import lora_sharding, replicated, rows_sharding
from pintern.models.shared_prefix import Batch
from pintern.training.step import TrainBatch, TrainState


def adapter_shardings(mesh: Mesh | AbstractMesh, adapter: Adapter) -> Adapter:
    """Of LoRA as its kernels lie, so that no part of a product moves twice; of a soft prompt whole
    on every device.
    """
    lora = {
        name: LoraPair(
            *(lora_sharding(mesh, name, side, x.shape) for side, x in zip("ab", pair, strict=True))
        )
        for name, pair in ((name, (pair.a, pair.b)) for name, pair in adapter.lora.items())
    }
    soft = None if adapter.soft_prompt is None else replicated(mesh)
    return adapter.replace(lora=lora, soft_prompt=soft)


def state_shardings(
    mesh: Mesh | AbstractMesh, optimizer: optax.GradientTransformation, state: TrainState
) -> TrainState:
    """Moments lie where their parameters do; counts are whole on every device."""
    of_adapter = adapter_shardings(mesh, state.adapter)
    of_optimizer = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        state.optimizer,
        of_adapter,
        transform_non_params=lambda _: replicated(mesh),
    )
    return TrainState(of_adapter, of_optimizer)


def of_members(shardings: TrainState) -> TrainState:
    """The same for a population, whose leaves have a member axis in front."""
    return jax.tree.map(
        lambda one: NamedSharding(one.mesh, PartitionSpec(None, *one.spec)), shardings
    )


def batch_shardings(
    mesh: Mesh | AbstractMesh, batch: TrainBatch, *, members: bool = False
) -> TrainBatch:
    """Rows are split over the devices; the prefix is whole on all of them.

    Args:
      mesh: the devices.
      batch: arrays or shapes, with axes micro-batch, group, row.
      members: whether there is a member axis in front of these.
    """
    rows = rows_sharding(mesh, row_axis=3 if members else 2)
    whole = replicated(mesh)

    def of(one: Batch) -> Batch:
        split = jax.tree.map(lambda _: rows, one)
        return split.replace(prefix_tokens=whole, prefix_valid=whole)

    teacher = None if batch.teacher is None else of(batch.teacher)
    return TrainBatch(of(batch.student), rows, teacher)


def place_batch(mesh: Mesh, batch: TrainBatch, *, members: bool = False) -> TrainBatch:
    """The batch, laid out.

    Every process makes the whole batch, which is a pure function of the step, and hands its own
    devices their part of it.
    """
    return place(batch, batch_shardings(mesh, batch, members=members))


def abstract_batch(mesh: Mesh, batch: TrainBatch, *, members: bool = False) -> TrainBatch:
    """Shapes of the batch as `place_batch` lays it out."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        batch,
        batch_shardings(mesh, batch, members=members),
    )


def place(tree: Any, shardings: Any) -> Any:
    """A tree of arrays, laid out; each is whole on this process, or lies on the mesh already."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    return jax.tree.map(_place_part, tree, shardings)


def _place_part(x: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return jax.jit(lambda x: x, out_shardings=sharding)(x)
    return jax.make_array_from_callback(np.shape(x), sharding, lambda index: np.asarray(x)[index])
