"""Where each of our parameters lies in a checkpoint, and the fingerprint of what lies there."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from pintern.models.config import DecoderConfig
from pintern.models.decoder import Decoder
from pintern.models.families import Family
from pintern.models.sharding import fetch


@dataclasses.dataclass(frozen=True)
class Place:
    """One stored tensor, and where it goes.

    Attributes:
      name: in the checkpoint.
      shape: as stored.
      path: of our parameter, `blocks.attention.query.kernel`.
      index: in a stacked parameter, `(layer,)` or `(layer, expert)`; empty where it isn't stacked.
      transpose: stored `(out, in)`.
    """

    name: str
    shape: tuple[int, ...]
    path: str
    index: tuple[int, ...]
    transpose: bool


def abstract_decoder(config: DecoderConfig, remat: bool = False) -> Decoder:
    """The decoder with shapes in place of arrays."""
    return nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0), remat=remat))


def parameters_by_path(decoder: Decoder) -> dict[str, Any]:
    """Parameter path (`blocks.attention.query.kernel`) to array, or to its abstract shape."""
    return {
        ".".join(key): variable.get_value()
        for key, variable in nnx.to_flat_state(nnx.state(decoder))
    }


@functools.lru_cache(maxsize=8)
def _shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    return {
        path: array.shape for path, array in parameters_by_path(abstract_decoder(config)).items()
    }


def places_of(family: Family, config: DecoderConfig) -> list[Place]:
    """Every tensor that a checkpoint of this family and shape consists of.

    A parameter that the family's table doesn't name is a mistake in that table: KeyError.
    """
    table = family.weights(config)
    places = []
    for path, shape in _shapes(config).items():
        weight = table[path]
        axes = [axis for axis in ("layer", "expert") if f"{{{axis}}}" in weight.name]
        one = shape[len(axes) :]
        one = one[::-1] if weight.transpose else one
        for index in np.ndindex(shape[: len(axes)]):
            name = weight.name.format(**dict(zip(axes, index, strict=True)))
            places.append(Place(name, one, path, index, weight.transpose))
    return places


def stored_tensor(weights: Mapping[str, Any], place: Place, dtype: DTypeLike) -> np.ndarray:
    """One tensor as the file holds it."""
    array = fetch(weights[place.path][place.index]).astype(dtype)
    return np.ascontiguousarray(array.T if place.transpose else array)


def tensor_digest(tensor: np.ndarray) -> str:
    """sha256 of dtype, shape and bytes."""
    digest = hashlib.sha256(f"{tensor.dtype.name} {tensor.shape} ".encode())
    digest.update(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def model_fingerprint(config: DecoderConfig, digests: Mapping[str, str]) -> str:
    """sha256 of the config's choices and of every tensor's digest, in no order of files."""
    # Only what departs from the defaults, so that a choice added later leaves old prints valid;
    # without the context length, which is arithmetic only where it is the shape of a tensor.
    values = dataclasses.asdict(config)
    choices = {
        field.name: values[field.name]
        for field in dataclasses.fields(config)
        if field.name != "max_positions" and getattr(config, field.name) != field.default
    }
    content = json.dumps([choices, dict(digests)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
