"""Every family against what PyTorch computed with a tiny random model (`fixtures/make.py`)."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pintern.models.families import FAMILIES, decoder_config
from pintern.models.load import Checkpoint, load_model, save_model
from pintern.models.rope import rotary_angles

pytestmark = pytest.mark.usefixtures("full_precision")

FIXTURES = Path(__file__).parent / "fixtures"
NAMES = sorted(path.parent.name for path in FIXTURES.glob("*/reference.json"))
ROPE = json.loads((FIXTURES / "rope.json").read_text())

family = pytest.mark.parametrize("name", NAMES)


@functools.cache
def opened(name: str) -> tuple[Checkpoint, dict]:
    directory = FIXTURES / name
    return load_model(directory), json.loads((directory / "reference.json").read_text())


def logits_of(checkpoint: Checkpoint, ids: list[int]) -> np.ndarray:
    """`[slot, vocab]`, in one pass."""

    @jax.jit
    def run(tokens):
        hidden, _ = checkpoint.decoder(tokens, jnp.arange(tokens.shape[-1])[None, None])
        return checkpoint.decoder.logits(hidden)[0, 0]

    return np.asarray(run(jnp.array([[ids]])))


def test_every_family_has_a_fixture():
    assert {opened(name)[0].family.name for name in NAMES} == set(FAMILIES)


@family
def test_logits_and_greedy_choices(name):
    checkpoint, reference = opened(name)
    ids, continued = reference["input_ids"], reference["greedy"]
    logits = logits_of(checkpoint, ids + continued)
    np.testing.assert_allclose(logits[: len(ids)], reference["logits"], atol=1e-4)
    # What follows the prompt is each time the first choice after what stands before it.
    assert logits[len(ids) - 1 : -1].argmax(-1).tolist() == continued


@family
def test_what_is_saved_loads_as_it_was(name, tmp_path):
    checkpoint, _ = opened(name)
    save_model(
        tmp_path, checkpoint.decoder, checkpoint.family, checkpoint.raw_config, dtype="float32"
    )
    assert load_model(tmp_path).fingerprint == checkpoint.fingerprint


def test_the_fixtures_make_every_choice():
    """A choice of the decoder that no fixture makes would be untried."""
    made = {}
    for name in NAMES:
        for option, value in dataclasses.asdict(opened(name)[0].config).items():
            made.setdefault(option, set()).add(str(value))
    constant = {option for option, values in made.items() if len(values) == 1}
    assert constant <= {"vocab_size", "model_dim", "norm_eps"}


@pytest.mark.parametrize("case", ROPE["cases"])
def test_scaled_angles(case):
    expected = ROPE["cases"][case]
    raw = {
        "model_type": "llama",
        "vocab_size": 8,
        "hidden_size": 4 * ROPE["head_dim"],
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "max_position_embeddings": expected["max_position_embeddings"],
        "rope_theta": 10000.0,
        "rope_scaling": expected["rope_parameters"],
    }
    config = decoder_config(FAMILIES["llama"], raw)
    positions = np.array([0, 1, 7, 100])
    cos, sin = rotary_angles(
        jnp.asarray(positions),
        config.head_dim,
        config.rope_theta,
        config.rope_scaling,
        max(config.max_positions, expected["length"]),
    )
    angles = positions[:, None] * np.asarray(expected["frequencies"])
    np.testing.assert_allclose(cos, np.cos(angles) * expected["length_factor"], atol=2e-5)
    np.testing.assert_allclose(sin, np.sin(angles) * expected["length_factor"], atol=2e-5)
