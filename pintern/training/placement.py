"""Lays a run's state and batches out over the mesh."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AbstractMesh, Mesh

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


def place_batch(mesh: Mesh, batch: TrainBatch) -> TrainBatch:
    """Rows split over the devices, the prefix on all of them.

    Every process makes the whole batch, which is a pure function of the step, and hands its own
    devices their part of it.
    """
    rows = rows_sharding(mesh, row_axis=2)  # behind micro-batch and group
    whole = replicated(mesh)

    def of(one: Batch) -> Batch:
        split = jax.tree.map(lambda _: rows, one)
        return split.replace(prefix_tokens=whole, prefix_valid=whole)

    shardings = TrainBatch(
        of(batch.student), rows, None if batch.teacher is None else of(batch.teacher)
    )
    return place(batch, shardings)


def place(tree: Any, shardings: Any) -> Any:
    """A tree of arrays, whole on this process, laid out."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    return jax.tree.map(
        lambda x, sharding: jax.make_array_from_callback(
            np.shape(x), sharding, lambda index: np.asarray(x)[index]
        ),
        tree,
        shardings,
    )
