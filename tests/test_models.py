"""The decoder against what others compute: golden values of stories260K and of a tiny GPT-2."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pintern.models.decoder import Decoder
from pintern.models.load import Checkpoint, load_model
from pintern.models.shared_prefix import cross_entropy
from pintern.prompts.tokens import PieceTokenizer

pytestmark = pytest.mark.usefixtures("full_precision")

STORIES = Path(__file__).parents[1] / ".." / "shared" / "models" / "stories260K"
GPT2 = Path(__file__).parent / "fixtures" / "gpt2"


@functools.cache
def opened(directory: Path) -> tuple[Checkpoint, dict]:
    if not directory.is_dir():
        pytest.skip(f"{directory.name} is not on this machine")
    return load_model(directory), json.loads((directory / "reference.json").read_text())


def compiled(decoder: Decoder):
    """One token behind a cache: its logits, and the cache with it."""

    @jax.jit
    def step(token, position, cache):
        hidden, cache = decoder(token[None, None, None], position[None, None, None], cache)
        return decoder.logits(hidden)[0, 0, 0], cache

    return step


@jax.jit
def read(decoder: Decoder, ids):
    """A whole sequence's logits `[slot, vocab]`, and its cache."""
    hidden, cache = decoder(ids[None, None], jnp.arange(len(ids))[None, None])
    return decoder.logits(hidden)[0, 0], cache


def full_logits(checkpoint: Checkpoint, ids: list[int]) -> np.ndarray:
    """One pass over the whole sequence, `[slot, vocab]`."""
    return np.asarray(read(checkpoint.decoder, jnp.array(ids))[0])


def mean_nll(logits: np.ndarray, ids: list[int]) -> float:
    """Mean of −log p over the ids after the first, in nats."""
    targets = jnp.array(ids[1:])
    total = cross_entropy(jnp.asarray(logits[:-1]), targets, jnp.ones(len(targets)))
    return float(total) / len(targets)


def greedy(checkpoint: Checkpoint, ids: list[int], steps: int) -> tuple[list[int], np.ndarray]:
    """Continues `ids` by `steps` tokens, one at a time through the cache.

    Returns:
      the continuation, and the logits `[step, vocab]` that it was picked from.
    """
    decoder = checkpoint.decoder
    whole, cache = read(decoder, jnp.array(ids))
    cache = cache.with_room(steps)

    step = compiled(decoder)
    logits = [whole[-1]]
    tokens = [int(logits[-1].argmax())]
    while len(tokens) < steps:
        position = len(ids) + len(tokens) - 1
        new, cache = step(jnp.array(tokens[-1]), jnp.array(position), cache)
        logits.append(new)
        tokens.append(int(new.argmax()))
    return tokens, np.stack(logits)


def test_stories_token_ids_of_bos_and_pieces():
    _, reference = opened(STORIES)
    tokenizer = PieceTokenizer.load(STORIES)
    ids = [*tokenizer.bos, *tokenizer.encode(reference["prompt"])]
    assert ids == reference["input_ids"]


def test_stories_logits_and_nll():
    checkpoint, reference = opened(STORIES)
    ids = reference["input_ids"]
    logits = full_logits(checkpoint, ids)
    np.testing.assert_allclose(logits[-1, :16], reference["last_logits_first16"], atol=1e-4)
    # The reference's mean is over the prompt's own ids, the first (BOS) left out.
    assert mean_nll(logits, ids) == pytest.approx(reference["mean_nll"], abs=1e-5)


def test_stories_greedy_text():
    checkpoint, reference = opened(STORIES)
    expected = reference["greedy_from_bos"]
    tokens, _ = greedy(checkpoint, expected[:1], len(expected) - 1)
    assert expected[:1] + tokens == expected
    assert PieceTokenizer.load(STORIES).decode(tokens).strip() == reference["greedy_text"].strip()


def test_gpt2_logits_and_nll():
    checkpoint, reference = opened(GPT2)
    logits = full_logits(checkpoint, reference["input_ids"])
    np.testing.assert_allclose(logits, reference["logits"], atol=1e-4)
    assert mean_nll(logits, reference["input_ids"]) == pytest.approx(
        reference["mean_nll"], abs=1e-5
    )


def test_gpt2_greedy():
    checkpoint, reference = opened(GPT2)
    tokens, _ = greedy(checkpoint, reference["input_ids"], len(reference["greedy"]))
    assert tokens == reference["greedy"]


@pytest.mark.parametrize("directory", [STORIES, GPT2], ids=lambda path: path.name)
def test_decoding_through_the_cache_equals_one_pass(directory):
    checkpoint, reference = opened(directory)
    prompt = reference["input_ids"][:5]
    tokens, stepwise = greedy(checkpoint, prompt, 12)
    whole = full_logits(checkpoint, prompt + tokens)
    np.testing.assert_allclose(stepwise, whole[4:-1], atol=2e-5)


@pytest.mark.parametrize("directory", [STORIES, GPT2], ids=lambda path: path.name)
def test_a_later_token_changes_nothing_before_it(directory):
    checkpoint, reference = opened(directory)
    ids = reference["input_ids"]
    other = [*ids[:8], *reversed(ids[8:])]
    one, two = full_logits(checkpoint, ids), full_logits(checkpoint, other)
    np.testing.assert_allclose(one[:8], two[:8], atol=1e-6)
    assert np.abs(one[8:] - two[8:]).max() > 0.1


def test_bfloat16_stays_near_float32():
    checkpoint, reference = opened(GPT2)
    ids = reference["input_ids"]
    half = full_logits(load_model(GPT2, dtype=jnp.bfloat16), ids)
    assert half.dtype == np.float32
    assert np.abs(half - full_logits(checkpoint, ids)).mean() < 0.1 * np.abs(half).mean()
