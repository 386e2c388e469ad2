"""PEFT's PROMPT_TUNING directory: one tensor, `prompt_embeddings` `(virtual_token, model)`.

Its vectors stand at positions 0, 1, …, in front of BOS and of everything that is sent.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from safetensors.numpy import save_file

from pintern.adapters.adapter import Adapter
from pintern.adapters.soft_prompt import TENSOR
from pintern.errors import UserError
from pintern.interop.files import CONFIG, WEIGHTS, few, positive_number, read_adapter_tensors
from pintern.models.load import Checkpoint


def write_soft_prompt(
    directory: Path,
    adapter: Adapter,
    checkpoint: Checkpoint,
    *,
    base_name: str,
    revision: str = "",
    dtype: DTypeLike = jnp.float32,
) -> None:
    """Writes the adapter's soft prompt.

    Args:
      directory: where to; made if absent.
      adapter: with a soft prompt.
      checkpoint: the base, for its widths.
      base_name: hub name or path under which loaders find the base.
      revision: of a hub name; empty is the newest.
      dtype: of storage.
    """
    vectors = np.asarray(adapter.soft_prompt, np.float32).astype(dtype)
    config = {
        "peft_type": "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "revision": revision or None,
        "num_virtual_tokens": vectors.shape[0],
        "token_dim": vectors.shape[1],
        "num_layers": checkpoint.config.num_layers,
        "num_attention_heads": checkpoint.config.num_heads,
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "RANDOM",
        "prompt_tuning_init_text": None,
        "tokenizer_name_or_path": None,
        "inference_mode": True,
    }
    directory.mkdir(parents=True, exist_ok=True)
    save_file({TENSOR: vectors}, directory / WEIGHTS, metadata={"format": "pt"})
    (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def read_soft_prompt(directory: Path, config: dict[str, Any], checkpoint: Checkpoint) -> Adapter:
    """Reads a directory that PEFT or `write_soft_prompt` wrote.

    Args:
      directory: of the soft prompt.
      config: its adapter_config.json.
      checkpoint: the base that it is to stand in front of.

    Raises:
      UserError: an option that isn't computed here, or a tensor that doesn't fit config or base.
    """
    for option, plain in (
        ("task_type", (None, "CAUSAL_LM")),
        ("num_transformer_submodules", (None, 1)),
        ("modules_to_save", (None, [])),
    ):
        if config.get(option) not in plain:
            raise UserError(
                f"{directory / CONFIG}: {option} is {config[option]!r}, which is more than a soft "
                "prompt of a causal LM and not computed here.",
                "Train one without this option.",
            )
    length = positive_number(config, "num_virtual_tokens", directory, int)
    width = checkpoint.config.embed_dim or checkpoint.config.model_dim
    if config.get("token_dim") not in (None, width):
        raise UserError(
            f"{directory / CONFIG}: token_dim is {config['token_dim']!r}; this base is {width} "
            "wide.",
            "It is a soft prompt of another base.",
        )
    tensors = read_adapter_tensors(directory)
    path = directory / WEIGHTS
    if TENSOR not in tensors:
        raise UserError(f"{path} lacks {TENSOR}.", f"It has: {few(tensors) or 'nothing'}.")
    extra = tensors.keys() - {TENSOR}
    if extra:
        raise UserError(
            f"{path} holds more than a soft prompt: {few(extra)}.", "Nothing is dropped silently."
        )
    vectors = tensors[TENSOR]
    if vectors.ndim != 2 or vectors.shape[1] != width:
        raise UserError(
            f"{TENSOR} in {path} has shape {vectors.shape}; this base needs ({length}, {width}).",
            "It is a soft prompt of another base.",
        )
    if vectors.shape[0] != length:
        raise UserError(
            f"{directory / CONFIG} says num_virtual_tokens={length}, but {TENSOR} has "
            f"{vectors.shape[0]} rows.",
            "Config and weights must belong to one soft prompt.",
        )
    return Adapter({}, jnp.asarray(vectors))
