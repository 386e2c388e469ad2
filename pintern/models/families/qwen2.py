"""Qwen 2 and 2.5: Llama with biases on query, key and value, and windows in the upper layers."""

from collections.abc import Mapping
from typing import Any

from pintern.models.config import DecoderConfig
from pintern.models.families import llama_layout
from pintern.models.families.options import read_flag, read_size, read_window, read_windowed
from pintern.models.families.table import Family

# What transformers takes where config.json is silent, as far as it isn't Llama's.
DEFAULTS = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
}
KNOWN = llama_layout.KNOWN | llama_layout.WINDOWS | {"use_sliding_window", "max_window_layers"}


def _config(raw: Mapping[str, Any]) -> DecoderConfig:
    raw = {**DEFAULTS, **raw}
    return DecoderConfig(
        **llama_layout.shared_fields(raw), **window_fields(raw), attention_bias=True
    )


def window_fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Windowed are the layers from `max_window_layers` on, if any are."""
    if not read_flag(raw, "use_sliding_window", False):
        raw = {**raw, "sliding_window": None}
    window = read_window(raw)
    lower = raw.get("max_window_layers", 28)
    if lower != 0:
        lower = read_size(raw, "max_window_layers", 28)
    layers = read_size(raw, "num_hidden_layers")
    return read_windowed(raw, window, [window is not None and i >= lower for i in range(layers)])


FAMILY = Family(
    name="qwen2",
    to_config=_config,
    weights=llama_layout.weights,
    checked={"use_mrope": (None, False)},
    known=KNOWN,
    ignored_tensors=llama_layout.IGNORED,
)
