"""LoRA folded into the base's files, one layer of one kernel at a time, as transformers reads them.

Each kernel is merged in float32 and cast when it is written; in memory there is never a second
model, and on disk there are shards with an index beyond a size.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from pintern.adapters.adapter import Adapter, LoraPair
from pintern.errors import UserError
from pintern.models.checkpoint_files import (
    SHARD_BYTES,
    TensorFiles,
    write_config,
    write_tensors,
)
from pintern.models.layout import (
    model_fingerprint,
    parameters_by_path,
    places_of,
    stored_tensor,
    tensor_digest,
)
from pintern.models.load import Checkpoint
from pintern.models.quantize import dequantize

# What makes a folder of weights a model to serve: the tokenizer, and how to generate.
_BESIDE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


@dataclasses.dataclass(frozen=True)
class _MergedKernel:
    """W + scale·A·B in float32, one layer when it is asked for."""

    kernel: Any
    pair: LoraPair
    scale: float

    def __getitem__(self, layer: int | tuple[int, ...]) -> np.ndarray:
        a, b = (np.asarray(x[layer], np.float32) for x in (self.pair.a, self.pair.b))
        return np.asarray(self.kernel[layer], np.float32) + np.float32(self.scale) * (a @ b)


def write_merged(
    directory: Path,
    adapter: Adapter,
    checkpoint: Checkpoint,
    *,
    dtype: DTypeLike,
    max_shard_bytes: int = SHARD_BYTES,
) -> str:
    """Writes base + LoRA with config.json and tokenizer; returns the merged model's fingerprint.

    Args:
      directory: where to; it must not hold weights yet.
      adapter: its LoRA is merged, its soft prompt is a prompt and is left out.
      checkpoint: the base, in memory in a dtype that loses nothing of the stored one; of a
        quantised one the weights that it stands for, beside which the pairs were trained.
      dtype: of storage.
      max_shard_bytes: above this the weights are split into shards with an index.

    Raises:
      UserError: a merged value that `dtype` can't hold, or a directory that holds weights.
    """
    storage = jnp.dtype(dtype)
    weights = parameters_by_path(dequantize(checkpoint.decoder))
    for name, pair in adapter.lora.items():
        path = f"blocks.{name}.kernel"
        weights[path] = _MergedKernel(weights[path], pair, adapter.scale)
    places = {place.name: place for place in places_of(checkpoint.family, checkpoint.config)}
    digests = {}

    def tensor(name: str) -> np.ndarray:
        with np.errstate(over="ignore"):
            made = stored_tensor(weights, places[name], storage)
        if not np.isfinite(made.astype(np.float32)).all():
            raise UserError(
                f"Tensor {name} merged isn't finite in {storage.name}.",
                "Choose --dtype=float32 or --dtype=bfloat16.",
            )
        digests[name] = tensor_digest(made)
        return made

    shapes = {name: place.shape for name, place in places.items()}
    write_tensors(directory, shapes, tensor, storage, max_shard_bytes)
    write_config(directory, checkpoint.raw_config, storage)
    if checkpoint.directory is not None:
        for file in _BESIDE:
            if (checkpoint.directory / file).is_file():
                shutil.copyfile(checkpoint.directory / file, directory / file)
    return model_fingerprint(checkpoint.config, digests)


def stored_dtype(directory: Path) -> np.dtype:
    """The dtype in which a checkpoint directory stores its largest tensor."""
    files = TensorFiles(directory)
    return files.read(max(files.names, key=lambda name: int(np.prod(files.shape(name))))).dtype
