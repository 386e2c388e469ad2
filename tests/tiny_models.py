"""Tiny random decoders and adapters of every family, for tests.

Their values come from NumPy, which has nothing to compile.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pintern.adapters.adapter import Adapter, LoraPair
from pintern.models.decoder import Decoder
from pintern.models.families import FAMILIES, decoder_config
from pintern.models.layout import abstract_decoder

VOCAB, WIDTH, LAYERS = 29, 16, 2
_LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
# The two on which tests run that don't ask about families.
CONFIGS = {
    "llama": {"model_type": "llama", **_LLAMA},
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": VOCAB,
        "n_embd": WIDTH,
        "n_layer": LAYERS,
        "n_head": 4,
        "n_positions": 32,
    },
}
EVERY_FAMILY = {
    **CONFIGS,
    "opt": {
        "model_type": "opt",
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "ffn_dim": 24,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
    },
    "bloom": {
        "model_type": "bloom",
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "n_layer": LAYERS,
        "n_head": 4,
    },
    "gpt_neox": {
        "model_type": "gpt_neox",
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "intermediate_size": 24,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
    },
    # Windows that are narrower than the sequences, so that prefix tokens fall out of them.
    "mistral": {"model_type": "mistral", **_LLAMA, "sliding_window": 5},
    "mixtral": {
        "model_type": "mixtral",
        **_LLAMA,
        "intermediate_size": 12,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "qwen2": {
        "model_type": "qwen2",
        **_LLAMA,
        "use_sliding_window": True,
        "sliding_window": 6,
        "max_window_layers": 1,
    },
    "qwen3": {"model_type": "qwen3", **_LLAMA, "head_dim": 6},
    "gemma2": {
        "model_type": "gemma2",
        **_LLAMA,
        "head_dim": 6,
        "query_pre_attn_scalar": 5,
        "sliding_window": 5,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 4.0,
    },
    "gemma3_text": {
        "model_type": "gemma3_text",
        **_LLAMA,
        "head_dim": 6,
        "query_pre_attn_scalar": 5,
        "sliding_window": 5,
        "sliding_window_pattern": 2,
    },
}


@functools.cache
def _decoder(family: str) -> Decoder:
    abstract = abstract_decoder(decoder_config(FAMILIES[family], EVERY_FAMILY[family]))
    leaves, tree = jax.tree_util.tree_flatten_with_path(abstract)
    rng = np.random.default_rng(2)
    with jax.ensure_compile_time_eval():  # whoever asks first may be traced
        return jax.tree.unflatten(
            tree,
            [
                jnp.asarray(
                    rng.normal("scale" in jax.tree_util.keystr(path), 0.2, x.shape), x.dtype
                )
                for path, x in leaves
            ],
        )


def random_decoder(family: str) -> Decoder:
    """Its norms and biases are random too, and its weights large enough for uneven attention."""
    return nnx.clone(_decoder(family))


@functools.cache
def random_adapter(
    family: str, *, virtual: int = 0, dropout: float = 0.0, zero_b: bool = False
) -> Adapter:
    """LoRA on every module, and a soft prompt of `virtual` tokens.

    B is random like A, as after training, or zero, as before it.
    """
    rng = np.random.default_rng(7)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(0, 0.3, shape), jnp.float32)

    lora = {}
    for name, (width_in, width_out) in _decoder(family).linear_modules().items():
        a, b = normal(LAYERS, width_in, 2), normal(LAYERS, 2, width_out)
        lora[name] = LoraPair(a, jnp.zeros_like(b) if zero_b else b)
    soft_prompt = normal(virtual, WIDTH) if virtual else None
    return Adapter(lora, soft_prompt, scale=1.5, dropout=dropout)
