"""Llama 1–3.x and what shares its layout: RMSNorm, RoPE, grouped-query attention, gated MLP."""

from collections.abc import Mapping
from typing import Any

from pintern.models.config import DecoderConfig
from pintern.models.families import llama_layout
from pintern.models.families.options import read_flag
from pintern.models.families.table import Family


def _config(raw: Mapping[str, Any]) -> DecoderConfig:
    attention_bias = read_flag(raw, "attention_bias", False)
    return DecoderConfig(
        **llama_layout.shared_fields(raw),
        attention_bias=attention_bias,
        output_bias=attention_bias,
        mlp_bias=read_flag(raw, "mlp_bias", False),
    )


FAMILY = Family(
    name="llama",
    to_config=_config,
    weights=llama_layout.weights,
    checked={
        "partial_rotary_factor": (None, 1.0),
        "pretraining_tp": (None, 1),
        "rope_interleaved": (None, False),
    },
    known=llama_layout.KNOWN
    # The last two are SmolLM2's and Llama 1's; transformers doesn't read them.
    | {"attention_bias", "mlp_bias", "is_llama_config", "max_sequence_length"},
    ignored_tensors=llama_layout.IGNORED,
)
