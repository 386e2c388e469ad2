"""Every option of config.json is computed, harmless, or refused by its name."""

import json
from pathlib import Path

import pytest

from pintern.errors import UserError
from pintern.models.families import FAMILIES, decoder_config, family_of
from pintern.models.layout import abstract_decoder, parameters_by_path

GPT2 = Path(__file__).parent / "fixtures" / "gpt2"
LLAMA = {
    "model_type": "llama",
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "attention_bias": True,
    "mlp_bias": True,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
}
GPT2_RAW = json.loads((GPT2 / "config.json").read_text())

GPT2_OPTIONS = [
    ({"scale_attn_weights": False}, "scale_attn_weights is False.*computes True"),
    ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
    ({"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn is True"),
    ({"add_cross_attention": True}, "add_cross_attention is True"),
    ({"activation_function": "relu"}, "activation_function is 'relu'.*'gelu_new' or 'gelu'"),
    ({"n_inner": 3.5}, "n_inner is 3.5; it must be a positive integer"),
    ({"n_inner": 0}, "n_inner is 0; it"),
    ({"n_head": 5}, "n_embd 32 is not a multiple of 5 heads"),
    ({"n_layer": "2"}, "n_layer is '2'; it must be a positive"),
    ({"layer_norm_epsilon": 0}, "layer_norm_epsilon is 0; it must be a positive number"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1; it must be true or false"),
    ({"alibi": True}, r"unknown option 'alibi' \(value True\)"),
    ({"quantization_config": {"bits": 4}}, "unknown option 'quantization_config'"),
    ({"pruned_heads": {"0": [1]}}, "pruned_heads is"),
    ({"model_type": None}, "model_type is None"),
]
LLAMA_OPTIONS = [
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'.*computes 'silu'"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling is .*'linear'.*null"),
    ({"rope_parameters": {"rope_type": "yarn"}}, r"rope_parameters\.rope_type is 'yarn'"),
    ({"rope_parameters": {"factor": 8.0}}, r"unknown option rope_parameters\.factor \(value 8\.0"),
    ({"rope_parameters": {"partial_rotary_factor": 0.5}}, r"partial_rotary_factor is 0\.5"),
    ({"partial_rotary_factor": 0.25}, r"partial_rotary_factor is 0\.25"),
    ({"rope_parameters": {"rope_theta": -1.0}}, r"rope_theta is -1\.0"),
    ({"pretraining_tp": 2}, "pretraining_tp is 2"),
    ({"num_key_value_heads": 3}, "num_heads=4 must be a multiple of num_kv_heads=3"),
    ({"head_dim": 5}, "head_dim is 5.*must be even"),
    ({"sliding_window": 64}, "unknown option 'sliding_window'"),
]


@pytest.mark.parametrize(
    ("raw", "fragment"),
    [({**GPT2_RAW, **o}, f) for o, f in GPT2_OPTIONS]
    + [({**LLAMA, **o}, f) for o, f in LLAMA_OPTIONS]
    + [({k: v for k, v in LLAMA.items() if k != "hidden_size"}, "'hidden_size' is missing")],
)
def test_an_option_that_is_not_computed_is_named(raw, fragment):
    with pytest.raises(UserError, match=fragment):
        decoder_config(family_of(raw), raw)


def test_options_reach_the_config():
    llama = decoder_config(FAMILIES["llama"], LLAMA)
    assert (llama.rope_theta, llama.num_kv_heads, llama.head_dim) == (500.0, 2, 4)
    older = {**LLAMA, "rope_parameters": None, "rope_theta": 500.0}
    assert decoder_config(FAMILIES["llama"], older) == llama
    gpt2 = decoder_config(FAMILIES["gpt2"], {**GPT2_RAW, "n_inner": 77})
    assert (gpt2.mlp_dim, gpt2.positions, gpt2.fused_qkv) == (77, "learned", True)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("raw", [LLAMA, GPT2_RAW], ids=["llama", "gpt2"])
def test_a_table_names_every_parameter_and_nothing_else(raw, tied):
    raw = {**raw, "tie_word_embeddings": tied}
    family = family_of(raw)
    config = decoder_config(family, raw)
    table = family.weights(config)
    assert set(table) == set(parameters_by_path(abstract_decoder(config)))
    assert len({weight.name for weight in table.values()}) == len(table)
    for path, weight in table.items():
        assert ("{layer}" in weight.name) == path.startswith("blocks.")
