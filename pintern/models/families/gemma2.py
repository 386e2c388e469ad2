"""Gemma 2: soft caps, alternating windows, scaled embeddings, norms before and after each map."""

from collections.abc import Mapping
from typing import Any

from pintern.models.config import DecoderConfig
from pintern.models.families import llama_layout
from pintern.models.families.options import (
    read_activation,
    read_cap,
    read_flag,
    read_number,
    read_size,
    read_window,
    read_windowed,
)
from pintern.models.families.table import Family

# What transformers takes where config.json is silent, as far as it isn't Llama's.
DEFAULTS = {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}
KNOWN = (
    llama_layout.KNOWN
    | llama_layout.WINDOWS
    | {
        "attention_bias",
        "hidden_activation",
        "query_pre_attn_scalar",
        "final_logit_softcapping",
        # How transformers keeps its own cache.
        "cache_implementation",
    }
)


def _config(raw: Mapping[str, Any]) -> DecoderConfig:
    raw = {
        **DEFAULTS,
        "max_position_embeddings": 8192,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        **raw,
    }
    layers = read_size(raw, "num_hidden_layers")
    return DecoderConfig(
        **gemma_fields(raw),
        **read_windowed(raw, read_window(raw), [i % 2 == 0 for i in range(layers)]),
        score_cap=read_cap(raw, "attn_logit_softcapping"),
        logit_cap=read_cap(raw, "final_logit_softcapping"),
    )


def gemma_fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `DecoderConfig` that Gemma 2 and 3 share, less windows and soft caps."""
    fields = llama_layout.shared_fields(raw)
    bias = read_flag(raw, "attention_bias", False)
    fields.update(
        # Gemma ignores the older `hidden_act`, which its first files got wrong.
        activation=read_activation(raw, "hidden_activation", "gelu_pytorch_tanh"),
        norm_offset=True,
        norm_placement="sandwich",
        embedding_scale=fields["model_dim"] ** 0.5,
        query_scale=read_number(raw, "query_pre_attn_scalar", 256) ** -0.5,
        attention_bias=bias,
        output_bias=bias,
    )
    return fields


FAMILY = Family(
    name="gemma2",
    to_config=_config,
    weights=llama_layout.weights,
    checked={"use_bidirectional_attention": (None, False)},
    # The files of 9B and 27B have the window under a second name, which transformers doesn't read.
    known=KNOWN | {"attn_logit_softcapping", "sliding_window_size"},
    ignored_tensors=llama_layout.IGNORED,
)
