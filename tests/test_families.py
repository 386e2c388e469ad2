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
FIXTURES = sorted(path.parent.name for path in GPT2.parent.glob("*/config.json"))

GPT2_OPTIONS = [
    ({"scale_attn_weights": False}, "scale_attn_weights is False.*computes True"),
    ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
    ({"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn is True"),
    ({"add_cross_attention": True}, "add_cross_attention is True"),
    ({"activation_function": "mish"}, "activation_function is 'mish'.*'gelu', 'gelu_new'"),
    ({"n_inner": 3.5}, "n_inner is 3.5; it must be a positive integer"),
    ({"n_inner": 0}, "n_inner is 0; it"),
    ({"n_head": 5}, "n_embd 32 is not a multiple of 5 heads"),
    ({"n_layer": "2"}, "n_layer is '2'; it must be a positive"),
    ({"activation_function": ["gelu"]}, "the value of an option is of another kind"),
    ({"layer_norm_epsilon": 0}, "layer_norm_epsilon is 0; it must be a positive number"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1; it must be true or false"),
    ({"alibi": True}, r"unknown option 'alibi' \(value True\)"),
    ({"quantization_config": {"bits": 4}}, "unknown option 'quantization_config'"),
    ({"pruned_heads": {"0": [1]}}, "pruned_heads is"),
    ({"model_type": None}, "model_type is None"),
]
LLAMA_OPTIONS = [
    ({"hidden_act": "quick_gelu"}, "hidden_act is 'quick_gelu'.*computes 'silu'"),
    ({"rope_scaling": {"type": "linear"}}, r"rope_scaling\.factor is missing"),
    ({"rope_scaling": {"type": "longrope"}}, r"rope_scaling\.rope_type is 'longrope'.*yarn"),
    ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor is 0; it must be a positive"),
    ({"rope_scaling": {"type": "linear", "beta_fast": 3}}, r"option rope_scaling\.beta_fast"),
    ({"rope_scaling": "linear"}, "rope_scaling is 'linear'; it must be a table"),
    (
        {"rope_scaling": {"type": "llama3", "factor": 8.0, "high_freq_factor": 1.0}},
        r"high_freq_factor is 1\.0, low_freq_factor 1\.0",
    ),
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


# For each of the other families, what would change the arithmetic and isn't computed.
OTHER_OPTIONS = [
    ("opt", {"_remove_final_layer_norm": True}, "_remove_final_layer_norm is True"),
    ("opt", {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine is False"),
    ("bloom", {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection"),
    ("bloom", {"slow_but_exact": True}, "slow_but_exact is True.*computes False"),
    ("bloom", {"n_embed": 99}, "hidden_size is 24 and n_embed is 99"),
    ("gpt_neox", {"rope_parameters": {"partial_rotary_factor": 2.0}}, "rotates 16 of 8"),
    ("gpt_neox", {"rope_parameters": None, "rope_theta": 500}, "rope_theta is 500, which trans"),
    (
        "gpt_neox",
        {"rope_parameters": None, "partial_rotary_factor": 0.5},
        "partial_rotary_factor is 0.5, which trans.*rotary_pct",
    ),
    ("mistral", {"sliding_window": 0}, "sliding_window is 0"),
    ("mistral", {"layer_types": ["full_attention"] * 3}, "unknown option 'layer_types'"),
    ("mixtral", {"num_experts_per_tok": 9}, "experts_per_token=9 exceeds num_experts=5"),
    ("qwen2", {"use_mrope": True}, "use_mrope is True"),
    ("qwen2", {"layer_types": ["full_attention"]}, "layer_types is .*Expected 3"),
    ("qwen2", {"layer_types": ["chunked_attention"] * 3}, "layer_types is .*chunked"),
    (
        "qwen2",
        {"layer_types": ["sliding_attention"] * 3, "use_sliding_window": False},
        "sliding_window is null",
    ),
    ("qwen3", {"num_experts": 8}, "unknown option 'num_experts'"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50"),
    (
        "gemma3_text",
        {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
        "sliding_attention.rope_type is 'linear'",
    ),
    (
        "gemma3_text",
        {"rope_parameters": {"sliding_attention": "default"}},
        "rope_parameters.sliding_attention is 'default'; it must be a table",
    ),
    ("gemma3_text", {"rope_parameters": ["full_attention"]}, "rope_parameters is .*a table"),
    ("gemma3_text", {"rope_parameters": {"rope_theta": 5.0}}, "option rope_parameters.rope_theta"),
]


def fixture_config(name: str) -> dict:
    return json.loads((GPT2.parent / name / "config.json").read_text())


@pytest.mark.parametrize(("name", "options", "fragment"), OTHER_OPTIONS)
def test_an_option_of_another_family_is_named(name, options, fragment):
    raw = {**fixture_config(name), **options}
    with pytest.raises(UserError, match=fragment):
        decoder_config(family_of(raw), raw)


def test_older_files_of_a_family_mean_the_same():
    """What the hub's files say in older words, and what transformers 5 writes."""
    older = {
        "gemma3_text": {
            "rope_parameters": None,
            "rope_theta": 800.0,
            "rope_local_base_freq": 50.0,
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
            "layer_types": None,
            "sliding_window_pattern": 2,
        },
        "gemma2": {"layer_types": None, "cache_implementation": "hybrid"},
        "qwen2": {"layer_types": None},
        "gpt_neox": {
            "rope_parameters": None,
            "rotary_pct": 0.5,
            "rotary_emb_base": 10000,
            "partial_rotary_factor": 0.5,
            "rope_theta": 10000,
        },
        "bloom": {"hidden_size": None, "n_embed": 24, "n_layer": None, "num_hidden_layers": 2},
        "mixtral": {"rope_parameters": None, "rope_theta": 1e6},
    }
    for name, options in older.items():
        raw = fixture_config(name)
        family = family_of(raw)
        assert decoder_config(family, {**raw, **options}) == decoder_config(family, raw), name


def test_what_published_files_say_besides_changes_nothing():
    """Of DistilGPT-2, GPT-2 medium, GPT-NeoX-20B, Llama 1, SmolLM2, Gemma 2 9B, fine-tunes."""
    said = {
        "gpt2": {
            "_num_labels": 1,
            "n_special": 0,
            "predict_special_tokens": True,
            "output_past": True,
            "is_decoder": False,
        },
        "gpt_neox": {"attention_probs_dropout_prob": 0, "hidden_dropout_prob": 0},
        "llama": {
            "is_llama_config": True,
            "rope_interleaved": False,
            "transformers.js_config": {},
            "max_sequence_length": 2048,
        },
        "gemma2": {"sliding_window_size": 4096, "_attn_implementation": "eager"},
        "qwen3": {"_attn_implementation_autoset": True, "unsloth_version": "2026.4.2"},
    }
    for name, options in said.items():
        raw = fixture_config(name)
        family = family_of(raw)
        assert decoder_config(family, {**raw, **options}) == decoder_config(family, raw), name


def test_what_a_silent_config_means():
    """Where config.json leaves an option out, transformers' own default counts."""
    raw = {key: value for key, value in fixture_config("mistral").items() if value is not None}
    del raw["sliding_window"]
    assert decoder_config(FAMILIES["mistral"], raw).window == 4096
    assert decoder_config(FAMILIES["mistral"], {**raw, "sliding_window": None}).window is None
    raw = fixture_config("gemma2")
    for option in ("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"):
        del raw[option]
    config = decoder_config(FAMILIES["gemma2"], raw)
    assert (config.query_scale, config.score_cap, config.logit_cap) == (1 / 16, 50.0, 30.0)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["llama with biases", *FIXTURES])
def test_a_table_names_every_parameter_and_nothing_else(name, tied):
    raw = LLAMA if name == "llama with biases" else fixture_config(name)
    raw = {**raw, "tie_word_embeddings": tied}
    family = family_of(raw)
    config = decoder_config(family, raw)
    table = family.weights(config)
    assert set(table) == set(parameters_by_path(abstract_decoder(config)))
    assert len({weight.name for weight in table.values()}) == len(table)
    for path, weight in table.items():
        assert ("{layer}" in weight.name) == path.startswith("blocks.")
        experts = config.mlp == "experts" and path.startswith("blocks.mlp.")
        assert ("{expert}" in weight.name) == (experts and not path.endswith("router"))
