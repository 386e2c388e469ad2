"""Fresh random models of odd shapes, beside transformers and torch: `make test-peers`.

Logits, greedy continuation behind a shared prefix, and batches padded left and right.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from fixtures.make import random_model  # noqa: E402

from pintern.models.families import FAMILIES  # noqa: E402
from pintern.models.load import Checkpoint, load_model  # noqa: E402
from pintern.models.shared_prefix import positions_of, prefill  # noqa: E402

pytestmark = pytest.mark.usefixtures("full_precision")

# Most of the time would go into compiling programs that run once.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
STEPS = 6
# Tokens of the rows of a batch; the longest needs no padding.
LENGTHS = (13, 4, 9)

_GROUPED = {
    "vocab_size": 53,
    "hidden_size": 36,
    "intermediate_size": 50,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 70,
}
# One key head for all queries, and heads that together are wider than the model.
_SINGLE = {**_GROUPED, "hidden_size": 24, "num_attention_heads": 3, "num_key_value_heads": 1}
_ALL_OWN = {**_GROUPED, "num_attention_heads": 3, "num_key_value_heads": 3, "num_hidden_layers": 2}
_NEOX = {key: value for key, value in _ALL_OWN.items() if key != "num_key_value_heads"}
_GPT2 = {"vocab_size": 53, "n_positions": 40, "n_embd": 30, "n_layer": 3, "n_head": 5}
_OPT = {
    "vocab_size": 53,
    "hidden_size": 30,
    "ffn_dim": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "max_position_embeddings": 40,
    "word_embed_proj_dim": 30,
}
_BLOOM = {"vocab_size": 53, "hidden_size": 30, "n_layer": 2, "n_head": 5}
# torch's grouped product wants rows of whole 16 bytes.
_EVEN = {"intermediate_size": 52}
_WINDOWED = {"use_sliding_window": True, "sliding_window": 4}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}

SHAPES = {
    "gpt2": [_GPT2, {**_GPT2, "n_head": 1, "n_inner": 17, "tie_word_embeddings": False}],
    "opt": [
        _OPT,
        {**_OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 14},
        {**_OPT, "enable_bias": False, "activation_function": "gelu", "num_attention_heads": 3},
    ],
    "bloom": [_BLOOM, {**_BLOOM, "hidden_size": 44, "n_head": 11}, {**_BLOOM, "n_head": 1}],
    "gpt_neox": [
        _NEOX,
        {**_NEOX, "use_parallel_residual": False, "rotary_pct": 1.0, "tie_word_embeddings": True},
        # Three of twelve dimensions turn: an odd number, which is rounded up.
        {**_NEOX, "rotary_pct": 0.25, "attention_bias": False},
        {**_NEOX, "rope_scaling": {"rope_type": "linear", "factor": 3.0}, "rotary_pct": 0.5},
    ],
    "llama": [
        {**_GROUPED, "attention_bias": True, "mlp_bias": True},
        {**_SINGLE, "head_dim": 12, "tie_word_embeddings": True},
        {**_ALL_OWN, "rope_parameters": {"rope_theta": 500.0, **_LLAMA3}},
        {**_GROUPED, "rope_parameters": {"rope_theta": 900.0, **_YARN}},
        {**_GROUPED, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
    ],
    "mistral": [{**_GROUPED, "sliding_window": 4}, {**_SINGLE, "head_dim": 8}],
    "mixtral": [
        {**_GROUPED, **_EVEN, "num_local_experts": 3, "num_experts_per_tok": 2},
        {**_SINGLE, "head_dim": 8, **_EVEN, "num_local_experts": 7, "num_experts_per_tok": 3},
        {
            **_ALL_OWN,
            **_EVEN,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "sliding_window": 5,
        },
    ],
    "qwen2": [
        {**_GROUPED, **_WINDOWED, "max_window_layers": 1},
        {**_ALL_OWN, "tie_word_embeddings": True},
    ],
    "qwen3": [
        {**_GROUPED, "head_dim": 10, "attention_bias": True},
        {**_SINGLE, "head_dim": 14, **_WINDOWED, "max_window_layers": 2},
    ],
    "gemma2": [
        {**_GROUPED, "head_dim": 10, "query_pre_attn_scalar": 7, "sliding_window": 4},
        {**_ALL_OWN, "head_dim": 12, "attn_logit_softcapping": None, "sliding_window": 6},
    ],
    "gemma3_text": [
        {**_GROUPED, "head_dim": 10, "sliding_window": 4, "sliding_window_pattern": 2},
        {**_ALL_OWN, "head_dim": 12, "sliding_window": 5, "final_logit_softcapping": 3.0},
    ],
}
CASES = [(name, number) for name, shapes in SHAPES.items() for number in range(len(shapes))]
case = pytest.mark.parametrize(("name", "number"), CASES)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Both sides' models of a case; ours reads what transformers writes."""

    @functools.cache
    def both(name: str, number: int):
        directory = tmp_path_factory.mktemp("model")
        theirs = random_model({"model_type": name, **SHAPES[name][number]}, seed=number)
        theirs.save_pretrained(directory)
        # Nothing ends a continuation early.
        theirs.generation_config.eos_token_id = None
        return theirs, load_model(directory)

    return both


def rows_of(checkpoint: Checkpoint, side: str) -> tuple[np.ndarray, np.ndarray]:
    """`[row, slot]` tokens with random padding on one side, and which of them are real."""
    rng = np.random.default_rng(3)
    tokens = rng.integers(1, checkpoint.config.vocab_size, (len(LENGTHS), max(LENGTHS)))
    places = np.arange(max(LENGTHS))[None]
    lengths = np.array(LENGTHS)[:, None]
    valid = places < lengths if side == "right" else places >= max(LENGTHS) - lengths
    return tokens, valid.astype(np.int32)


@case
@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_of_padded_batches(opened, name, number, side):
    theirs, ours = opened(name, number)
    tokens, valid = rows_of(ours, side)

    @jit
    def run(tokens, valid):
        hidden, _ = ours.decoder(tokens, positions_of(valid))
        return ours.decoder.logits(hidden)[0]

    found = np.asarray(run(jnp.asarray(tokens)[None], jnp.asarray(valid)[None]))
    given = {"attention_mask": torch.tensor(valid)}
    if name != "bloom":
        # BLOOM reads positions off the mask; it takes none.
        given["position_ids"] = torch.tensor(np.maximum(np.cumsum(valid, -1) - 1, 0))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens), **given).logits.numpy()
    real = valid > 0
    assert np.abs(found[real] - expected[real]).max() < 1e-4
    # Each row alone, without padding, gives the same.
    for row, kept, logits in zip(tokens, real, found, strict=True):
        with torch.no_grad():
            alone = theirs(torch.tensor(row[kept])[None]).logits[0].numpy()
        assert np.abs(logits[kept] - alone).max() < 1e-4


@case
def test_greedy_continuation_behind_a_prefix(opened, name, number):
    """Ours reads the rows' common start once; theirs reads it in every row."""
    theirs, ours = opened(name, number)
    tokens, valid = rows_of(ours, "left")
    prefix = tokens[0, :5]

    # Padding may stand in front only, where transformers is to continue a batch.
    sequences = [
        np.concatenate([prefix, row[kept > 0]]) for row, kept in zip(tokens, valid, strict=True)
    ]
    room = max(map(len, sequences))
    padded = np.stack([np.pad(s, (room - len(s), 0)) for s in sequences])
    mask = np.stack([np.arange(room) >= room - len(s) for s in sequences]).astype(np.int32)
    with torch.no_grad():
        expected = theirs.generate(
            torch.tensor(padded),
            attention_mask=torch.tensor(mask),
            max_new_tokens=STEPS,
            do_sample=False,
            pad_token_id=0,
        )[:, room:].numpy()

    decoder = ours.decoder

    @jit
    def read(prefix, tokens, valid):
        cache, start = prefill(decoder, prefix[None], jnp.ones_like(prefix)[None])
        positions = positions_of(valid[None], start[:, None])
        hidden, cache = decoder(tokens[None], positions, cache)
        choice = decoder.logits(hidden[:, :, -1:]).argmax(-1)
        return choice, positions.max(-1, keepdims=True) + 1, cache.with_room(STEPS)

    @jit
    def step(choice, positions, cache):
        hidden, cache = decoder(choice, positions, cache)
        return decoder.logits(hidden).argmax(-1), positions + 1, cache

    choice, positions, cache = read(*map(jnp.asarray, (prefix, tokens, valid)))
    picked = [choice]
    for _ in range(STEPS - 1):
        choice, positions, cache = step(choice, positions, cache)
        picked.append(choice)
    np.testing.assert_array_equal(np.concatenate(picked, -1)[0], expected)


def test_every_family_is_compared():
    assert set(SHAPES) == set(FAMILIES)
