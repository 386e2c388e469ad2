"""Mistral: Llama with a sliding window in every layer, or in none."""

from collections.abc import Mapping
from typing import Any

from pintern.models.config import DecoderConfig
from pintern.models.families import llama_layout
from pintern.models.families.options import read_window
from pintern.models.families.table import Family

# What transformers takes where config.json is silent, as far as it isn't Llama's.
_DEFAULTS = {
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}


def _config(raw: Mapping[str, Any]) -> DecoderConfig:
    raw = {**_DEFAULTS, **raw}
    return DecoderConfig(**llama_layout.shared_fields(raw), window=read_window(raw))


FAMILY = Family(
    name="mistral",
    to_config=_config,
    weights=llama_layout.weights,
    checked={},
    known=llama_layout.KNOWN | {"sliding_window"},
    ignored_tensors=llama_layout.IGNORED,
)
