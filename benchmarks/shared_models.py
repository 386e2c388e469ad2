"""One set of random weights, read by both sides: transformers' own model, and pintern's decoder.

Shapes are those of released models; the weights are random, for speed doesn't depend on them.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pintern.models.load import Checkpoint

GPT2_124M = {
    "model_type": "gpt2",
    "vocab_size": 50257,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_positions": 1024,
    # A benchmark's two sides must compute the same.
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
LLAMA_1B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "rope_theta": 500000.0,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
# For trying a script out; nothing measured on them means anything.
TINY_GPT2 = {**GPT2_124M, "vocab_size": 997, "n_embd": 64, "n_layer": 2, "n_head": 4}
TINY_LLAMA = {
    **LLAMA_1B,
    "vocab_size": 997,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


@contextlib.contextmanager
def saved_model(
    shape: Mapping[str, Any], *, seed: int = 0, dtype: str = "float32"
) -> Iterator[Path]:
    """A folder with a random model that transformers made and saved; removed in the end.

    Args:
      shape: content of config.json.
      seed: of the weights.
      dtype: of storage, `float32` or `bfloat16`.
    """
    import torch
    import transformers

    torch.manual_seed(seed)
    options = {name: value for name, value in shape.items() if name != "model_type"}
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    config = transformers.AutoConfig.for_model(shape["model_type"], **options, **special)
    # Random numbers by the billion are a GPU's work, where there is one.
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        del model
        yield Path(folder)


def torch_model(folder: Path, *, dtype: str = "float32", device: str = "cpu") -> Any:
    """The folder's model in transformers, as a user loads it: attention is its default, SDPA."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    return model.to(device)


def pintern_model(folder: Path, *, dtype: str = "float32", **options: Any) -> Checkpoint:
    """The same weights in pintern; `options` as in `load_model`."""
    from pintern.models.load import load_model

    return load_model(folder, dtype=dtype, **options)
