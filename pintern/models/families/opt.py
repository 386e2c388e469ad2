"""OPT: LayerNorm, learned positions whose table starts two rows late, ReLU.

OPT-350m is the odd one: its norms follow the sums, and its embedding is narrower than the model.
"""

from collections.abc import Mapping
from typing import Any

from pintern.models.config import DecoderConfig
from pintern.models.families.options import head_width, read_activation, read_flag, read_size
from pintern.models.families.table import Family, Weight, linear, norm


def _config(raw: Mapping[str, Any]) -> DecoderConfig:
    width, heads = read_size(raw, "hidden_size"), read_size(raw, "num_attention_heads")
    embed = read_size(raw, "word_embed_proj_dim", width)
    bias = read_flag(raw, "enable_bias", True)
    return DecoderConfig(
        vocab_size=read_size(raw, "vocab_size"),
        model_dim=width,
        num_layers=read_size(raw, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_width("hidden_size", width, heads),
        mlp_dim=read_size(raw, "ffn_dim"),
        norm="layer",
        norm_eps=1e-5,
        norm_placement="pre" if read_flag(raw, "do_layer_norm_before", True) else "post",
        positions="learned",
        max_positions=read_size(raw, "max_position_embeddings", 2048),
        position_offset=2,
        mlp="plain",
        activation=read_activation(raw, "activation_function", "relu"),
        attention_bias=bias,
        output_bias=bias,
        mlp_bias=bias,
        embed_dim=None if embed == width else embed,
        tied_head=read_flag(raw, "tie_word_embeddings", True),
    )


def _weights(config: DecoderConfig) -> dict[str, Weight]:
    layer, bias = "model.decoder.layers.{layer}.", config.mlp_bias
    table = {
        "embedding": Weight("model.decoder.embed_tokens.weight"),
        "position_table": Weight("model.decoder.embed_positions.weight"),
        **norm("blocks.attention_norm", f"{layer}self_attn_layer_norm"),
        **norm("blocks.mlp_norm", f"{layer}final_layer_norm"),
        **linear("blocks.attention.query", f"{layer}self_attn.q_proj", bias=bias),
        **linear("blocks.attention.key", f"{layer}self_attn.k_proj", bias=bias),
        **linear("blocks.attention.value", f"{layer}self_attn.v_proj", bias=bias),
        **linear("blocks.attention.output", f"{layer}self_attn.out_proj", bias=bias),
        **linear("blocks.mlp.up", f"{layer}fc1", bias=bias),
        **linear("blocks.mlp.down", f"{layer}fc2", bias=bias),
    }
    if config.norm_placement == "pre":
        table |= norm("final_norm", "model.decoder.final_layer_norm")
    if config.embed_dim is not None:
        table["project_in"] = Weight("model.decoder.project_in.weight", transpose=True)
        table["project_out"] = Weight("model.decoder.project_out.weight", transpose=True)
    if not config.tied_head:
        table["head"] = Weight("lm_head.weight", transpose=True)
    return table


FAMILY = Family(
    name="opt",
    to_config=_config,
    weights=_weights,
    checked={
        "_remove_final_layer_norm": (None, False),
        "layer_norm_elementwise_affine": (None, True),
    },
    known=frozenset(
        [
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "ffn_dim",
            "max_position_embeddings",
            "do_layer_norm_before",
            "word_embed_proj_dim",
            "activation_function",
            "enable_bias",
            "tie_word_embeddings",
            "dropout",
            "attention_dropout",
            "activation_dropout",
            "layerdrop",
            "init_std",
        ]
    ),
    prefix="model.",
)
