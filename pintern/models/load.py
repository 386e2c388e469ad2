"""A checkpoint directory in Hugging Face's layout becomes a decoder, and a decoder becomes one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from pintern.errors import UserError
from pintern.models.checkpoint_files import (
    SHARD_BYTES,
    TensorFiles,
    read_config,
    write_config,
    write_tensors,
)
from pintern.models.config import DecoderConfig
from pintern.models.decoder import Decoder
from pintern.models.families import Family, decoder_config, family_of
from pintern.models.layout import (
    Place,
    abstract_decoder,
    model_fingerprint,
    parameters_by_path,
    places_of,
    stored_tensor,
    tensor_digest,
)
from pintern.models.quantize import dequantize, hold_in_int8, kernel_paths
from pintern.models.sharding import ShardingOf, on_one_device
from pintern.models.stream import Stacks


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A base model, ready to run, and where it came from.

    Attributes:
      decoder: the model.
      config: its shape and choices.
      family: which file of `families` described it.
      raw_config: config.json as read.
      directory: where it was read from; None for random weights from a config alone.
      fingerprint: sha256 of the arithmetic options and of every tensor as stored. Two bases with
        the same one are the same model, however they are sharded.
    """

    decoder: Decoder
    config: DecoderConfig
    family: Family
    raw_config: dict[str, Any]
    directory: Path | None
    fingerprint: str


def load_model(
    path: str | Path,
    *,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    quantized: bool = False,
    sharding_of: ShardingOf = on_one_device,
) -> Checkpoint:
    """Reads config.json and the safetensors beside it, tensor by tensor, onto the devices.

    The host holds one tensor at a time and one shard file mapped (`python -m benchmarks.loading`).

    Args:
      path: checkpoint directory.
      dtype: of the weights in memory.
      remat: recompute each block in the backward pass, see `Decoder`.
      quantized: hold the linear maps in int8 from the start, as `quantize` would afterwards.
      sharding_of: where each parameter lies; everything on the first device if not given.

    Raises:
      UserError: the directory, the config or a tensor isn't as it must be; the message names it.
    """
    directory = Path(path)
    raw = read_config(directory)
    family = family_of(raw)
    config = decoder_config(family, raw)
    abstract = abstract_decoder(config, remat)
    places = places_of(family, config)
    files = TensorFiles(directory)
    stored = _match_names(files, places, family, config)

    stacks = Stacks(
        {path: leaf.shape for path, leaf in parameters_by_path(abstract).items()},
        dtype,
        sharding_of,
        kernel_paths(abstract) if quantized else frozenset(),
    )
    digests: dict[str, str] = {}
    for place in sorted(places, key=lambda place: files.order(stored[place.name])):
        tensor = _read_checked(files, stored[place.name], place, dtype)
        digests[place.name] = tensor_digest(tensor)
        stacks.add(place, tensor)
    files.close()
    if quantized:
        hold_in_int8(abstract)
    graph, empty = nnx.split(abstract)
    state = nnx.from_flat_state(
        (key, variable.replace(stacks.arrays.pop(".".join(key))))
        for key, variable in nnx.to_flat_state(empty)
    )
    decoder = nnx.merge(graph, state)
    return Checkpoint(decoder, config, family, raw, directory, model_fingerprint(config, digests))


def init_model(
    source: str | Path | Mapping[str, Any],
    seed: int,
    *,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    sharding_of: ShardingOf = on_one_device,
) -> Checkpoint:
    """A model with random weights in the shape that a config.json describes.

    Args:
      source: directory that holds config.json, or its content.
      seed: of the weights.
      dtype: of the weights in memory.
      remat: recompute each block in the backward pass, see `Decoder`.
      sharding_of: where each parameter lies; everything on the first device if not given.
    """
    directory = None if isinstance(source, Mapping) else Path(source)
    raw = dict(source) if isinstance(source, Mapping) else read_config(Path(source))
    family = family_of(raw)
    config = decoder_config(family, raw)

    def initial():
        state = nnx.state(Decoder(config, rngs=nnx.Rngs(seed), remat=remat))
        return jax.tree.map(lambda x: x.astype(dtype), state)

    graph, abstract = nnx.split(abstract_decoder(config, remat))
    shardings = nnx.from_flat_state(
        (key, variable.replace(sharding_of(".".join(key), variable.shape)))
        for key, variable in nnx.to_flat_state(abstract)
    )
    decoder = nnx.merge(graph, jax.jit(initial, out_shardings=shardings)())
    weights = parameters_by_path(decoder)
    digests = {
        place.name: tensor_digest(stored_tensor(weights, place, dtype))
        for place in places_of(family, config)
    }
    return Checkpoint(decoder, config, family, raw, directory, model_fingerprint(config, digests))


def save_model(
    directory: str | Path,
    decoder: Decoder,
    family: Family,
    raw_config: Mapping[str, Any],
    *,
    dtype: str = "bfloat16",
    max_shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes config.json and safetensors under the family's names, as transformers reads them.

    Args:
      directory: where to; it must not hold weights yet.
      decoder: the model; a quantised one is written as the weights that it stands for.
      family: whose names and layouts to use.
      raw_config: config.json to write; its dtype entry is set to `dtype`.
      dtype: of storage.
      max_shard_bytes: above this the weights are split into shards with an index.

    Raises:
      UserError: the directory holds weights already.
    """
    directory = Path(directory)
    storage = jnp.dtype(dtype)
    weights = parameters_by_path(dequantize(decoder))
    places = {place.name: place for place in places_of(family, decoder.config)}
    write_tensors(
        directory,
        {name: place.shape for name, place in places.items()},
        lambda name: stored_tensor(weights, places[name], storage),
        storage,
        max_shard_bytes,
    )
    write_config(directory, raw_config, storage)


def check_tokenizer(tokenizer_size: int, config: DecoderConfig) -> None:
    """Refuses a tokenizer that makes ids which the embedding hasn't got.

    Args:
      tokenizer_size: one more than its largest id.
      config: of the model.

    Raises:
      UserError: the tokenizer is larger than the embedding.
    """
    if tokenizer_size > config.vocab_size:
        raise UserError(
            f"The tokenizer makes ids up to {tokenizer_size - 1} ({tokenizer_size} tokens), but "
            f"the model's embedding has {config.vocab_size} rows.",
            "Use the tokenizer that the model was trained with.",
        )


def _match_names(
    files: TensorFiles, places: list[Place], family: Family, config: DecoderConfig
) -> dict[str, str]:
    """Our name of each tensor to its name in the files, once nothing is missing or left over."""
    prefix = family.prefix
    lacks_prefix = prefix and not any(name.startswith(prefix) for name in files.names)
    wanted = {place.name for place in places}
    stored = {
        prefix + name if lacks_prefix and name != family.head else name: name
        for name in files.names
    }
    embedding = family.weights(config)["embedding"].name
    if config.tied_head and embedding not in stored and family.head in stored:
        # Whoever writes a shared tensor once may leave it either name.
        stored[embedding] = stored.pop(family.head)
    missing = sorted(wanted - stored.keys())
    if missing == [family.head]:
        raise UserError(
            f"Untied mismatch in {files.directory}: {family.head} is missing from the weights, "
            "though config.json doesn't tie it to the embedding.",
            "Set tie_word_embeddings to true, or get weights that hold the tensor.",
        )
    if missing:
        raise UserError(
            f"{_few(missing)} missing from the weights in {files.directory}.",
            "Config and weights must belong to one model.",
        )
    extra = {name for name in stored.keys() - wanted if not name.endswith(family.ignored_tensors)}
    if config.tied_head and family.head in extra:
        extra.remove(family.head)
        table = stored[embedding]
        if not np.array_equal(files.read(stored[family.head]), files.read(table)):
            raise UserError(
                f"Tied mismatch in {files.directory}: {family.head} differs from {table}, "
                "though config.json ties them.",
                "Set tie_word_embeddings to false, or remove the tensor.",
            )
    if extra:
        raise UserError(
            f"{_few(sorted(stored[name] for name in extra))} in {files.directory} not part of a "
            f"{family.name} model of this config.",
            "Nothing is dropped silently: config and weights must belong to one model.",
        )
    return stored


def _read_checked(files: TensorFiles, name: str, place: Place, dtype: DTypeLike) -> np.ndarray:
    found = files.shape(name)
    if found != place.shape:
        raise UserError(
            f"Tensor {name} in {files.directory} has shape {found}; expected {place.shape}.",
            "Config and weights must belong to one model.",
        )
    tensor = files.read(name)
    with np.errstate(over="ignore"):
        finite = np.isfinite(tensor.astype(dtype, copy=False)).all()
    if not finite:
        raise UserError(
            f"Tensor {name} in {files.directory} holds NaN or infinite values, read as "
            f"{jnp.dtype(dtype).name}.",
            "Such a model computes nothing: get an intact copy.",
        )
    return tensor


def _few(names: list[str], shown: int = 4) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    verb = "are" if len(names) > 1 else "is"
    return f"Tensor{'s' * (len(names) > 1)} {', '.join(names[:shown])}{more} {verb}"
