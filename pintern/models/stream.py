"""Tensors of a checkpoint, one at a time, into parameters that lie on their devices from the start.

A parameter is stacked over layers (and experts), a checkpoint holds each layer's share on its own.
The stack is allocated where it belongs, and each share is written into it in place; so the host
holds one tensor at a time, and whatever of the open shard file the system keeps mapped.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jax.typing import DTypeLike

from pintern.models.layout import Place
from pintern.models.quantize import quantize_kernel
from pintern.models.sharding import ShardingOf


class Stacks:
    """Parameters that are being filled.

    Attributes:
      arrays: by parameter path; complete once every place was added.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        dtype: DTypeLike,
        sharding_of: ShardingOf,
        held_in_int8: frozenset[str] = frozenset(),
    ):
        """
        Args:
          shapes: of every parameter, by path.
          dtype: in memory.
          sharding_of: where each parameter lies.
          held_in_int8: paths of kernels to quantise as they come; their scales, at the path with
            `_scale` behind it, are filled beside them.
        """
        self.arrays: dict[str, jax.Array] = {}
        self._shapes, self._dtype, self._sharding_of = shapes, dtype, sharding_of
        self._held_in_int8 = held_in_int8

    def add(self, place: Place, tensor: np.ndarray) -> None:
        """Writes one stored tensor, cast to the dtype, where it belongs."""
        tensor = tensor.astype(self._dtype, copy=False)
        tensor = tensor.T if place.transpose else tensor
        if place.path not in self._held_in_int8:
            self._write(place.path, self._shapes[place.path], place.index, tensor)
            return
        kernel, scale = quantize_kernel(tensor)
        shape = self._shapes[place.path]
        self._write(place.path, shape, place.index, kernel)
        self._write(f"{place.path}_scale", (*shape[:-2], shape[-1]), place.index, scale)

    def _write(
        self, path: str, shape: tuple[int, ...], index: tuple[int, ...], part: np.ndarray
    ) -> None:
        sharding = self._sharding_of(path, shape)
        if not index:
            self.arrays[path] = _placed(part, sharding)
            return
        if path not in self.arrays:
            self.arrays[path] = _allocate(shape, part.dtype, sharding)
        share = _placed(part, _without_leading(sharding, len(index)))
        # Waited for, so that no second tensor is read while this one is still on its way.
        self.arrays[path] = jax.block_until_ready(
            _write_in_place(sharding)(self.arrays[path], share, index)
        )


def _placed(part: np.ndarray, sharding: Sharding) -> jax.Array:
    """Each device gets its piece, and no device, and no other host, the whole."""
    return jax.make_array_from_callback(part.shape, sharding, lambda index: part[index])


def _allocate(shape: tuple[int, ...], dtype: DTypeLike, sharding: Sharding) -> jax.Array:
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)()


def _without_leading(sharding: Sharding, axes: int) -> Sharding:
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[axes:]))
    return sharding


@functools.lru_cache(maxsize=64)
def _write_in_place(sharding: Sharding) -> Callable[..., jax.Array]:
    @functools.partial(jax.jit, donate_argnums=0, out_shardings=sharding)
    def write(stack: jax.Array, share: jax.Array, index: tuple[Any, ...]) -> jax.Array:
        start = (*index, *(0 for _ in share.shape))
        # Not `at[].set`, a scatter, for which XLA:CPU makes a float32 copy of a bfloat16 stack.
        return jax.lax.dynamic_update_slice(
            stack, jnp.expand_dims(share, tuple(range(len(index)))), start
        )

    return write
