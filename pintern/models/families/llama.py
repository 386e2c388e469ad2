"""Llama 1–2 and what shares its layout: RMSNorm, RoPE, grouped-query attention, gated MLP."""

from collections.abc import Mapping
from typing import Any

from pintern.errors import UserError
from pintern.models.config import DecoderConfig
from pintern.models.families.options import head_width, read_flag, read_number, read_size
from pintern.models.families.table import Family, Weight


def _config(raw: Mapping[str, Any]) -> DecoderConfig:
    width, heads = read_size(raw, "hidden_size"), read_size(raw, "num_attention_heads")
    attention_bias = read_flag(raw, "attention_bias", False)
    return DecoderConfig(
        vocab_size=read_size(raw, "vocab_size"),
        model_dim=width,
        num_layers=read_size(raw, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=read_size(raw, "num_key_value_heads", heads),
        head_dim=_head_dim(raw, width, heads),
        mlp_dim=read_size(raw, "intermediate_size"),
        norm="rms",
        norm_eps=read_number(raw, "rms_norm_eps", 1e-6),
        positions="rope",
        max_positions=read_size(raw, "max_position_embeddings", 2048),
        rope_theta=_rope_theta(raw),
        mlp="gated",
        activation=raw.get("hidden_act", "silu"),
        attention_bias=attention_bias,
        output_bias=attention_bias,
        mlp_bias=read_flag(raw, "mlp_bias", False),
        tied_head=read_flag(raw, "tie_word_embeddings", False),
    )


def _head_dim(raw: Mapping[str, Any], width: int, heads: int) -> int:
    if raw.get("head_dim") is None:
        dim = head_width("hidden_size", width, heads)
    else:
        dim = read_size(raw, "head_dim")
    if dim % 2:
        raise UserError(
            f"config.json: head_dim is {dim}.", "Rotary positions turn pairs: it must be even."
        )
    return dim


def _rope_theta(raw: Mapping[str, Any]) -> float:
    """Base of the angles, from `rope_parameters` (transformers 5) or the older `rope_theta`."""
    rope = raw.get("rope_parameters") or {}
    for option, value in rope.items():
        if option not in _ROPE:
            raise UserError(
                f"config.json: unknown option rope_parameters.{option} (value {value!r}).",
                f"This decoder reads: {', '.join(_ROPE)}.",
            )
        if _ROPE[option] is not None and value not in _ROPE[option]:
            raise UserError(
                f"config.json: rope_parameters.{option} is {value!r}, which this decoder does not "
                "compute.",
                f"It computes {' or '.join(repr(v) for v in _ROPE[option])}.",
            )
    return read_number(rope, "rope_theta", read_number(raw, "rope_theta", 10000.0))


# Options inside `rope_parameters`, with the values that are computed; None: any.
_ROPE = {
    "rope_theta": None,
    "rope_type": ("default",),
    "partial_rotary_factor": (1.0,),
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


def _weights(config: DecoderConfig) -> dict[str, Weight]:
    table = {
        "embedding": Weight("model.embed_tokens.weight"),
        "final_norm.scale": Weight("model.norm.weight"),
        "blocks.attention_norm.scale": Weight("model.layers.{layer}.input_layernorm.weight"),
        "blocks.mlp_norm.scale": Weight("model.layers.{layer}.post_attention_layernorm.weight"),
    }
    for ours, theirs in _LINEAR.items():
        path = f"model.layers.{{layer}}.{theirs}"
        table[f"blocks.{ours}.kernel"] = Weight(f"{path}.weight", transpose=True)
        biased = config.mlp_bias if ours.startswith("mlp") else config.attention_bias
        if biased:
            table[f"blocks.{ours}.bias"] = Weight(f"{path}.bias")
    if not config.tied_head:
        table["head"] = Weight("lm_head.weight", transpose=True)
    return table


FAMILY = Family(
    name="llama",
    to_config=_config,
    weights=_weights,
    checked={
        "rope_scaling": (None,),
        "partial_rotary_factor": (None, 1.0),
        "pretraining_tp": (None, 1),
        "hidden_act": ("silu",),
    },
    known=frozenset(
        [
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
            "rms_norm_eps",
            "rope_theta",
            "rope_parameters",
            "tie_word_embeddings",
            "attention_bias",
            "mlp_bias",
            "attention_dropout",
        ]
    ),
    ignored_tensors=("rotary_emb.inv_freq",),
)
