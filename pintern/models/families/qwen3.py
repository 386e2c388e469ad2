"""Qwen 3, dense: Qwen 2 with normalised query and key heads in place of their biases."""

from collections.abc import Mapping
from typing import Any

from pintern.models.config import DecoderConfig
from pintern.models.families import llama_layout, qwen2
from pintern.models.families.options import read_flag
from pintern.models.families.table import Family


def _config(raw: Mapping[str, Any]) -> DecoderConfig:
    raw = {**qwen2.DEFAULTS, "head_dim": 128, **raw}
    bias = read_flag(raw, "attention_bias", False)
    return DecoderConfig(
        **llama_layout.shared_fields(raw),
        **qwen2.window_fields(raw),
        qk_norm=True,
        attention_bias=bias,
        output_bias=bias,
    )


FAMILY = Family(
    name="qwen3",
    to_config=_config,
    weights=llama_layout.weights,
    checked={},
    known=qwen2.KNOWN | {"attention_bias"},
    ignored_tensors=llama_layout.IGNORED,
)
