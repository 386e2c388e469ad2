"""What Llama, Mistral, Mixtral, Qwen and Gemma share: option names, and where weights lie."""

from collections.abc import Mapping
from typing import Any

from pintern.models.config import DecoderConfig
from pintern.models.families.options import (
    head_width,
    read_activation,
    read_flag,
    read_number,
    read_size,
)
from pintern.models.families.rope_options import read_rope
from pintern.models.families.table import Weight

KNOWN = frozenset(
    [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "hidden_act",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_theta",
        "rope_parameters",
        "rope_scaling",
        "tie_word_embeddings",
        "attention_dropout",
    ]
)
WINDOWS = frozenset(["sliding_window", "layer_types"])
# Buffers of older files.
IGNORED = ("rotary_emb.inv_freq",)


def shared_fields(raw: Mapping[str, Any], *, theta: float = 10000.0) -> dict[str, Any]:
    """Fields of a `DecoderConfig` that these families read alike; each adds its own choices.

    Args:
      raw: config.json, with the family's defaults where they aren't Llama's.
      theta: base of the rotary angles where none is stated.
    """
    width, heads = read_size(raw, "hidden_size"), read_size(raw, "num_attention_heads")
    stated = raw.get("head_dim") is not None
    head_dim = read_size(raw, "head_dim") if stated else head_width("hidden_size", width, heads)
    max_positions = read_size(raw, "max_position_embeddings", 2048)
    return {
        "vocab_size": read_size(raw, "vocab_size"),
        "model_dim": width,
        "num_layers": read_size(raw, "num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": read_size(raw, "num_key_value_heads", heads),
        "head_dim": head_dim,
        "mlp_dim": read_size(raw, "intermediate_size"),
        "norm": "rms",
        "norm_eps": read_number(raw, "rms_norm_eps", 1e-6),
        "positions": "rope",
        "max_positions": max_positions,
        "mlp": "gated",
        "activation": read_activation(raw, "hidden_act", "silu"),
        "tied_head": read_flag(raw, "tie_word_embeddings", False),
        **read_rope(raw, head_dim=head_dim, max_positions=max_positions, theta=theta),
    }


_LINEAR = {
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
_NORMS = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
}
_SANDWICH = {
    "attention_norm": "input_layernorm",
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}


def weights(config: DecoderConfig) -> dict[str, Weight]:
    """The table of these families, by the config's choices."""
    layer = "model.layers.{layer}."
    table = {
        "embedding": Weight("model.embed_tokens.weight"),
        "final_norm.scale": Weight("model.norm.weight"),
    }
    norms = _SANDWICH if config.norm_placement == "sandwich" else _NORMS
    for ours, theirs in norms.items():
        table[f"blocks.{ours}.scale"] = Weight(f"{layer}{theirs}.weight")
    if config.qk_norm:
        table["blocks.attention.query_norm.scale"] = Weight(f"{layer}self_attn.q_norm.weight")
        table["blocks.attention.key_norm.scale"] = Weight(f"{layer}self_attn.k_norm.weight")
    for ours, theirs in _LINEAR.items():
        if ours.startswith("mlp") and config.mlp == "experts":
            continue
        table[f"blocks.{ours}.kernel"] = Weight(f"{layer}{theirs}.weight", transpose=True)
        biased = config.mlp_bias if ours.startswith("mlp") else config.attention_bias
        biased = config.output_bias if ours == "attention.output" else biased
        if biased:
            table[f"blocks.{ours}.bias"] = Weight(f"{layer}{theirs}.bias")
    if not config.tied_head:
        table["head"] = Weight("lm_head.weight", transpose=True)
    return table
