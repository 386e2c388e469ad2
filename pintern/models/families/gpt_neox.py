"""GPT-NeoX and Pythia: attention and MLP side by side, rotary positions on a part of each head."""

from collections.abc import Mapping
from typing import Any

from pintern.errors import UserError
from pintern.models.config import DecoderConfig
from pintern.models.families.options import (
    head_width,
    read_activation,
    read_flag,
    read_number,
    read_size,
)
from pintern.models.families.rope_options import read_rope
from pintern.models.families.table import Family, Weight, linear, norm


def _config(raw: Mapping[str, Any]) -> DecoderConfig:
    width, heads = read_size(raw, "hidden_size"), read_size(raw, "num_attention_heads")
    head_dim = head_width("hidden_size", width, heads)
    max_positions = read_size(raw, "max_position_embeddings", 2048)
    bias = read_flag(raw, "attention_bias", True)
    return DecoderConfig(
        vocab_size=read_size(raw, "vocab_size"),
        model_dim=width,
        num_layers=read_size(raw, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        mlp_dim=read_size(raw, "intermediate_size"),
        norm="layer",
        norm_eps=read_number(raw, "layer_norm_eps", 1e-5),
        parallel_residual=read_flag(raw, "use_parallel_residual", True),
        positions="rope",
        max_positions=max_positions,
        **_rope(raw, head_dim, max_positions),
        mlp="plain",
        activation=read_activation(raw, "hidden_act", "gelu"),
        fused_qkv=True,
        qkv_by_head=True,
        attention_bias=bias,
        output_bias=bias,
        mlp_bias=True,
        tied_head=read_flag(raw, "tie_word_embeddings", False),
    )


def _rope(raw: Mapping[str, Any], head_dim: int, max_positions: int) -> dict[str, Any]:
    """The rotary fields, from `rotary_emb_base` and `rotary_pct` as transformers takes them.

    It passes over what other families call these, so they are refused where they would count.
    """
    elsewhere = ("rope_theta", "partial_rotary_factor")
    own = {option: value for option, value in raw.items() if option not in elsewhere}
    said, computed = (
        read_rope(options, head_dim=head_dim, max_positions=max_positions, rotary_share=0.25)
        for options in (raw, own)
    )
    if said != computed:
        given = " and ".join(f"{name} is {raw[name]!r}" for name in elsewhere if name in raw)
        raise UserError(
            f"config.json: {given}, which transformers passes over in a gpt_neox.",
            "Name them rotary_emb_base and rotary_pct, by which it computes, or leave them out.",
        )
    return computed


def _weights(config: DecoderConfig) -> dict[str, Weight]:
    layer, bias = "gpt_neox.layers.{layer}.", config.attention_bias
    table = {
        "embedding": Weight("gpt_neox.embed_in.weight"),
        **norm("final_norm", "gpt_neox.final_layer_norm"),
        **norm("blocks.attention_norm", f"{layer}input_layernorm"),
        **norm("blocks.mlp_norm", f"{layer}post_attention_layernorm"),
        **linear("blocks.attention.qkv", f"{layer}attention.query_key_value", bias=bias),
        **linear("blocks.attention.output", f"{layer}attention.dense", bias=bias),
        **linear("blocks.mlp.up", f"{layer}mlp.dense_h_to_4h"),
        **linear("blocks.mlp.down", f"{layer}mlp.dense_4h_to_h"),
    }
    if not config.tied_head:
        table["head"] = Weight("embed_out.weight", transpose=True)
    return table


FAMILY = Family(
    name="gpt_neox",
    to_config=_config,
    weights=_weights,
    checked={},
    known=frozenset(
        [
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "hidden_act",
            "max_position_embeddings",
            "layer_norm_eps",
            "use_parallel_residual",
            "rotary_pct",
            "rotary_emb_base",
            "rope_theta",
            "rope_parameters",
            "rope_scaling",
            "partial_rotary_factor",
            "attention_bias",
            "tie_word_embeddings",
            "attention_dropout",
            "hidden_dropout",
            "attention_probs_dropout_prob",
            "hidden_dropout_prob",
            "classifier_dropout",
            "is_decoder",
        ]
    ),
    # The causal mask, which older files store as if it were a weight, and the angles.
    ignored_tensors=(".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq"),
    prefix="gpt_neox.",
    head="embed_out.weight",
)
