"""The base in int8: close to the base in floats, half its memory, and the adapter beside it."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from safetensors.numpy import load_file
from tiny_models import CONFIGS, random_adapter, random_decoder

from pintern.assemble import load_base
from pintern.config import default_config
from pintern.errors import UserError
from pintern.evaluation.decode import Generator
from pintern.evaluation.sampling import Sampling
from pintern.evaluation.serving import run_server
from pintern.models.families import FAMILIES
from pintern.models.layout import parameters_by_path
from pintern.models.load import load_model, save_model
from pintern.models.merge import merge_lora
from pintern.models.quantize import (
    dequantize,
    dequantize_kernel,
    is_quantized,
    parameter_bytes,
    quantize,
    quantize_kernel,
)
from pintern.models.shared_prefix import token_nats
from pintern.prompts.requests import Request
from pintern.prompts.tokens import PieceTokenizer
from pintern.tasks import load_task
from pintern.training.loop import train
from pintern.training.restore import restore_run

STORIES = Path(__file__).parents[1] / ".." / "shared" / "models" / "stories260K"


def quantized(family: str):
    decoder = random_decoder(family)
    quantize(decoder)
    return decoder


@jax.jit
def hidden_of(decoder, adapter=None):
    tokens = jnp.arange(12)[None, None] % 29
    return decoder(tokens, jnp.arange(12)[None, None], adapter=adapter)[0]


def test_a_weight_is_off_by_half_a_scale_at_most():
    rng = np.random.default_rng(0)
    kernel = rng.normal(0, 1, (2, 30, 5)).astype(np.float32) * [1e-3, 1, 50, 1, 0]
    held, scale = quantize_kernel(np.asarray(kernel, np.float32))
    assert held.dtype == jnp.int8 and scale.shape == (2, 5)
    back = np.asarray(dequantize_kernel(held, scale, jnp.float32))
    assert (np.abs(back - kernel) <= np.asarray(scale)[:, None] / 2 * (1 + 1e-5)).all()
    assert np.abs(np.asarray(held, np.int32)).max((1,))[:, :4].min() == 127  # the whole range
    assert (back[..., 4] == 0).all()


@pytest.mark.parametrize("family", [*CONFIGS, "mixtral"])
def test_it_computes_what_its_dequantised_weights_compute(family):
    small, adapter = quantized(family), random_adapter(family)
    plain = dequantize(small)
    assert is_quantized(small) and not is_quantized(plain)
    for used in (None, adapter):
        np.testing.assert_allclose(hidden_of(small, used), hidden_of(plain, used), atol=2e-4)
    assert np.abs(hidden_of(plain) - hidden_of(random_decoder(family))).max() > 1e-3


@pytest.mark.parametrize("family", [*CONFIGS, "mixtral"])
def test_the_adapter_gets_the_gradients_of_the_dequantised_base(family):
    small = quantized(family)

    def loss(adapter, decoder):
        return (hidden_of(decoder, adapter) ** 2).sum()

    adapter = random_adapter(family)
    found = jax.tree.leaves(jax.grad(loss)(adapter, small))
    wanted = jax.tree.leaves(jax.grad(loss)(adapter, dequantize(small)))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3 * np.abs(b).max())


@pytest.mark.parametrize("family", [*CONFIGS, "mixtral"])
def test_merging_adds_to_the_dequantised_weights(family):
    """Refusing would leave no way out; requantising would round a small update away."""
    small, adapter = quantized(family), random_adapter(family)
    merged = merge_lora(small, adapter)
    assert not is_quantized(merged)
    np.testing.assert_allclose(hidden_of(merged), hidden_of(small, adapter), atol=2e-3)
    assert is_quantized(small)


def test_what_is_saved_are_the_dequantised_weights(tmp_path):
    small = quantized("llama")
    save_model(tmp_path, small, FAMILIES["llama"], CONFIGS["llama"], dtype="float32")
    assert {str(t.dtype) for t in load_file(tmp_path / "model.safetensors").values()} == {"float32"}
    found, wanted = (
        parameters_by_path(decoder) for decoder in (load_model(tmp_path).decoder, dequantize(small))
    )
    for path in wanted:
        np.testing.assert_array_equal(found[path], wanted[path])
    assert is_quantized(small)


def test_twice_is_refused():
    with pytest.raises(UserError, match="quantised already"):
        quantize(quantized("llama"))


def test_the_config_quantises_linear_maps_and_nothing_else():
    config = default_config()
    plain, _ = load_base(config)
    config.model.quantize = "int8"
    small, _ = load_base(config)
    assert small.fingerprint == plain.fingerprint  # the base as stored
    before, after = parameters_by_path(plain.decoder), parameters_by_path(small.decoder)
    for path, array in before.items():
        if path.endswith("kernel"):
            assert after[path].dtype == jnp.int8
        else:
            np.testing.assert_array_equal(after[path], array)
    kernels = sum(array.nbytes for path, array in before.items() if path.endswith("kernel"))
    saved = parameter_bytes(plain.decoder) - parameter_bytes(small.decoder)
    assert kernels * 0.74 < saved < kernels * 0.75  # from four bytes to one, and a few scales


def nats(decoder, sequences: list[tuple[list[int], int]]) -> float:
    """Mean −log p of each sequence's tokens from its start on."""
    width = max(len(ids) for ids, _ in sequences)
    tokens = np.zeros((len(sequences), width), np.int32)
    counts = np.zeros(tokens.shape)
    for row, (ids, start) in enumerate(sequences):
        tokens[row, : len(ids)] = ids
        counts[row, start : len(ids)] = 1
    positions = np.where(
        np.arange(width) < [[len(ids)] for ids, _ in sequences], np.arange(width), -1
    )
    graph, state = nnx.split(decoder)

    @jax.jit
    def run(state):
        decoder = nnx.merge(graph, state)
        hidden, _ = decoder(jnp.asarray(tokens[None]), jnp.asarray(positions[None]))
        return token_nats(decoder.logits(hidden[0, :, :-1]), jnp.asarray(tokens[:, 1:]))

    return float((run(state) * counts[:, 1:]).sum() / counts[:, 1:].sum())


def test_stories_are_as_likely_as_before():
    if not STORIES.exists():
        pytest.skip("../shared/models/stories260K is absent")
    # Its own greedy story, and tales in its manner.
    reference = json.loads((STORIES / "reference.json").read_text())
    tokenizer = PieceTokenizer.load(STORIES)
    tales = [
        "Once upon a time, there was a big dog named Max. Max liked to run in the park with Tim. "
        "One day, Max saw a red ball under a tree. He was very happy and ran to get it.",
        "Lily and her mom went to the store. Lily saw a toy and wanted to play with it. Her mom "
        'said, "No, Lily. We have to go home." Lily was sad, but then she had an idea.',
    ]
    sequences = [(reference["greedy_from_bos"], 1)]
    sequences += [([*tokenizer.bos, *tokenizer.encode(tale)], 1) for tale in tales]
    decoder = load_model(STORIES).decoder
    before = nats(decoder, sequences)
    quantize(decoder)
    after = nats(decoder, sequences)
    assert 0.5 < before < 2.5
    assert abs(after / before - 1) < 0.01


def test_the_company_s_answers_are_as_likely_as_before():
    config = default_config()
    checkpoint, tokenizer = load_base(config)
    task = load_task(config)
    prefix = [*tokenizer.bos, *tokenizer.encode(task.template)]
    sequences = []
    for example in task.test[::10]:
        asked = [*prefix, *tokenizer.encode(task.format.render_query(example.query))]
        answer = tokenizer.encode(task.format.render_completion(example.completion))
        sequences.append(([*asked, *answer, tokenizer.eos], len(asked)))
    before = nats(checkpoint.decoder, sequences)
    quantize(checkpoint.decoder)
    after = nats(checkpoint.decoder, sequences)
    assert after != before
    assert abs(after / before - 1) < 0.01, (before, after)


@pytest.mark.slow
def test_a_run_trains_and_answers_beside_it(tmp_path):
    config = tiny.config(model__quantize="int8", train__steps=4)
    assert train(config, tmp_path / "run")
    parts, adapter, step = restore_run(tmp_path / "run", config)
    assert step == 4
    assert is_quantized(parts.checkpoint.decoder)
    assert all(np.abs(pair.b).max() > 0 for pair in adapter.lora.values())
    served = run_server(parts, adapter)
    rows = served.rows([Request(e.query, e.id) for e in parts.prompts.task.test])
    graph, merged = nnx.split(merge_lora(parts.checkpoint.decoder, adapter))
    sampling = Sampling(config.eval.max_new_tokens, parts.tokenizer.eos)
    whole = Generator(graph, merged, None, parts.prompts.prefix(0.0), sampling)
    assert served.generator(rows, batch_rows=8) == whole(rows, batch_rows=8)
