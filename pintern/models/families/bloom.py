"""BLOOM: LayerNorm, ALiBi, fused query-key-value head by head, a norm after the embedding."""

from collections.abc import Mapping
from typing import Any

from pintern.errors import UserError
from pintern.models.config import DecoderConfig
from pintern.models.families.options import head_width, read_flag, read_number, read_size
from pintern.models.families.table import Family, Weight, linear, norm

# Newer and older names of one option.
_NAMES = {
    "hidden_size": ("hidden_size", "n_embed"),
    "n_layer": ("n_layer", "num_hidden_layers"),
    "n_head": ("n_head", "num_attention_heads"),
}


def _config(raw: Mapping[str, Any]) -> DecoderConfig:
    width, layers, heads = (_size(raw, *names) for names in _NAMES.values())
    return DecoderConfig(
        vocab_size=read_size(raw, "vocab_size"),
        model_dim=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_width("hidden_size", width, heads),
        mlp_dim=4 * width,
        norm="layer",
        norm_eps=read_number(raw, "layer_norm_epsilon", 1e-5),
        positions="alibi",
        max_positions=read_size(raw, "seq_length", 2048),
        mlp="plain",
        activation="gelu_new",
        fused_qkv=True,
        qkv_by_head=True,
        attention_bias=True,
        output_bias=True,
        mlp_bias=True,
        embedding_norm=True,
        tied_head=read_flag(raw, "tie_word_embeddings", True),
    )


def _size(raw: Mapping[str, Any], name: str, older: str) -> int:
    if raw.get(name) is not None and raw.get(older) not in (None, raw[name]):
        raise UserError(
            f"config.json: {name} is {raw[name]!r} and {older} is {raw[older]!r}.",
            "They are two names of one option.",
        )
    return read_size(raw, older if raw.get(name) is None else name)


def _weights(config: DecoderConfig) -> dict[str, Weight]:
    layer = "transformer.h.{layer}."
    table = {
        "embedding": Weight("transformer.word_embeddings.weight"),
        **norm("embedding_norm", "transformer.word_embeddings_layernorm"),
        **norm("final_norm", "transformer.ln_f"),
        **norm("blocks.attention_norm", f"{layer}input_layernorm"),
        **norm("blocks.mlp_norm", f"{layer}post_attention_layernorm"),
        **linear("blocks.attention.qkv", f"{layer}self_attention.query_key_value"),
        **linear("blocks.attention.output", f"{layer}self_attention.dense"),
        **linear("blocks.mlp.up", f"{layer}mlp.dense_h_to_4h"),
        **linear("blocks.mlp.down", f"{layer}mlp.dense_4h_to_h"),
    }
    if not config.tied_head:
        table["head"] = Weight("lm_head.weight", transpose=True)
    return table


FAMILY = Family(
    name="bloom",
    to_config=_config,
    weights=_weights,
    checked={
        "apply_residual_connection_post_layernorm": (None, False),
        "n_inner": (None,),
        # transformers computes by it where pretraining_tp is above 1, and then leaves biases out.
        "slow_but_exact": (None, False),
    },
    known=frozenset(
        [
            "vocab_size",
            *(name for names in _NAMES.values() for name in names),
            "layer_norm_epsilon",
            "seq_length",
            "tie_word_embeddings",
            "attention_dropout",
            "hidden_dropout",
            # How the training code split and fused the same arithmetic.
            "pretraining_tp",
            "attention_softmax_in_fp32",
            "bias_dropout_fusion",
            "masked_softmax_fusion",
            "offset_alibi",
            "skip_bias_add",
            "skip_bias_add_qkv",
            "unk_token_id",
        ]
    ),
    prefix="transformer.",
)
