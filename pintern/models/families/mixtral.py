"""Mixtral: Mistral with a router and several gated MLPs in every layer."""

from collections.abc import Mapping
from typing import Any

from pintern.models.config import DecoderConfig
from pintern.models.families import llama_layout
from pintern.models.families.options import read_size, read_window
from pintern.models.families.table import Family, Weight

# What transformers takes where config.json is silent, as far as it isn't Llama's.
_DEFAULTS = {
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
}
_EXPERT = {"gate": "w1", "up": "w3", "down": "w2"}


def _config(raw: Mapping[str, Any]) -> DecoderConfig:
    raw = {**_DEFAULTS, **raw}
    fields = llama_layout.shared_fields(raw, theta=1e6)
    fields.update(
        mlp="experts",
        num_experts=read_size(raw, "num_local_experts", 8),
        experts_per_token=read_size(raw, "num_experts_per_tok", 2),
        window=read_window(raw),
    )
    return DecoderConfig(**fields)


def _weights(config: DecoderConfig) -> dict[str, Weight]:
    table = llama_layout.weights(config)
    path = "model.layers.{layer}.block_sparse_moe."
    table["blocks.mlp.router"] = Weight(f"{path}gate.weight", transpose=True)
    for ours, theirs in _EXPERT.items():
        table[f"blocks.mlp.{ours}"] = Weight(
            f"{path}experts.{{expert}}.{theirs}.weight", transpose=True
        )
    return table


FAMILY = Family(
    name="mixtral",
    to_config=_config,
    weights=_weights,
    checked={},
    known=llama_layout.KNOWN
    | {
        "sliding_window",
        "num_local_experts",
        "num_experts_per_tok",
        "output_router_logits",
        # Of the base's own training.
        "router_aux_loss_coef",
        "router_jitter_noise",
    },
    ignored_tensors=llama_layout.IGNORED,
)
