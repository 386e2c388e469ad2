"""GPT-2 (XL too): LayerNorm, learned positions, fused q|k|v, biases everywhere.

Its linear maps are `Conv1D` modules, whose weights are stored `(in, out)` as ours are.
"""

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
from pintern.models.families.table import Family, Weight


def _config(raw: Mapping[str, Any]) -> DecoderConfig:
    width, heads = read_size(raw, "n_embd"), read_size(raw, "n_head")
    return DecoderConfig(
        vocab_size=read_size(raw, "vocab_size"),
        model_dim=width,
        num_layers=read_size(raw, "n_layer"),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_width("n_embd", width, heads),
        mlp_dim=read_size(raw, "n_inner", 4 * width),
        norm="layer",
        norm_eps=read_number(raw, "layer_norm_epsilon", 1e-5),
        positions="learned",
        max_positions=read_size(raw, "n_positions"),
        mlp="plain",
        activation=read_activation(raw, "activation_function", "gelu_new"),
        fused_qkv=True,
        attention_bias=True,
        output_bias=True,
        mlp_bias=True,
        tied_head=read_flag(raw, "tie_word_embeddings", True),
    )


_IN_BLOCK = {
    "attention_norm.scale": "ln_1.weight",
    "attention_norm.bias": "ln_1.bias",
    "attention.qkv.kernel": "attn.c_attn.weight",
    "attention.qkv.bias": "attn.c_attn.bias",
    "attention.output.kernel": "attn.c_proj.weight",
    "attention.output.bias": "attn.c_proj.bias",
    "mlp_norm.scale": "ln_2.weight",
    "mlp_norm.bias": "ln_2.bias",
    "mlp.up.kernel": "mlp.c_fc.weight",
    "mlp.up.bias": "mlp.c_fc.bias",
    "mlp.down.kernel": "mlp.c_proj.weight",
    "mlp.down.bias": "mlp.c_proj.bias",
}


def _weights(config: DecoderConfig) -> dict[str, Weight]:
    table = {
        "embedding": Weight("transformer.wte.weight"),
        "position_table": Weight("transformer.wpe.weight"),
        "final_norm.scale": Weight("transformer.ln_f.weight"),
        "final_norm.bias": Weight("transformer.ln_f.bias"),
    }
    for ours, theirs in _IN_BLOCK.items():
        table[f"blocks.{ours}"] = Weight(f"transformer.h.{{layer}}.{theirs}")
    if not config.tied_head:
        table["head"] = Weight("lm_head.weight", transpose=True)
    return table


FAMILY = Family(
    name="gpt2",
    to_config=_config,
    weights=_weights,
    checked={
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "reorder_and_upcast_attn": (False,),
        "add_cross_attention": (False,),
    },
    known=frozenset(
        [
            "vocab_size",
            "n_positions",
            "n_ctx",
            "n_embd",
            "n_layer",
            "n_head",
            "n_inner",
            "activation_function",
            "layer_norm_epsilon",
            "tie_word_embeddings",
            "resid_pdrop",
            "embd_pdrop",
            "attn_pdrop",
            # In files of 2019 and 2020.
            "n_special",
            "predict_special_tokens",
            "is_decoder",
        ]
    ),
    # The causal mask, which older files store as if it were a weight.
    ignored_tensors=(".attn.bias", ".attn.masked_bias"),
    prefix="transformer.",
)
