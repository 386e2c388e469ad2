"""A decoder makes the hidden states that are asked for, whichever way its blocks lie."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_models import VOCAB, random_adapter, random_decoder

from pintern.adapters.adapter import Adapter, init_lora
from pintern.evaluation.unroll import unrolled
from pintern.models.decoder import Decoder
from pintern.models.joint import read_jointly
from pintern.models.shared_prefix import positions_of, prefill

# Every placement of norms, penalties on distance, windows of some layers, experts.
KINDS = ("gpt2", "bloom", "gpt_neox", "gemma2", "mixtral", "post")


def decoder_of(kind: str) -> Decoder:
    if kind != "post":
        return random_decoder(kind)
    config = dataclasses.replace(random_decoder("opt").config, norm_placement="post")
    return Decoder(config, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("kind", KINDS)
def test_the_wanted_slots_are_those_of_the_whole_rows(kind):
    rng = np.random.default_rng(1)
    tokens = jnp.asarray(rng.integers(0, VOCAB, (1, 2, 7)))
    valid = jnp.asarray([[[1] * 7, [1] * 4 + [0] * 3]])
    prefix = jnp.asarray(rng.integers(0, VOCAB, (1, 4)))
    adapter = random_adapter("opt" if kind == "post" else kind)
    wanted = jnp.asarray([[[6, 2], [3, 0]]])

    @nnx.jit
    def read(decoder, wanted):
        cache, start = prefill(decoder, prefix, jnp.ones_like(prefix), adapter=adapter)
        positions = positions_of(valid, start[:, None])
        hidden, cache = decoder(tokens, positions, cache, wanted=wanted, adapter=adapter)
        return hidden, cache.rows

    stacked = decoder_of(kind)
    whole, rows = read(stacked, None)
    expected = np.take_along_axis(np.asarray(whole), np.asarray(wanted)[..., None], axis=2)
    for decoder in (stacked, nnx.merge(*unrolled(*nnx.split(stacked)))):
        hidden, others = read(decoder, wanted)
        np.testing.assert_allclose(hidden, expected, atol=2e-5)
        # What later tokens look at is kept of every slot.
        for i, kept in enumerate(others if isinstance(others, tuple) else [others]):
            mine = rows if kept is others else jax.tree.map(lambda x, i=i: x[i], rows)
            for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(mine), strict=True):
                np.testing.assert_allclose(a, b, atol=2e-5)


def test_no_slots_are_wanted_under_dropout():
    tokens = jnp.zeros((1, 1, 2), jnp.int32)
    with pytest.raises(ValueError, match="dropout"):
        random_decoder("gpt2")(tokens, tokens, wanted=tokens, dropout_key=jax.random.key(0))


@pytest.mark.parametrize("jointly", [True, False])
@pytest.mark.parametrize("kind", ["gemma2", "mixtral"])
@pytest.mark.parametrize("wanted", [None, jnp.asarray([[[9, 3, 5]]])], ids=["all", "some"])
def test_blocks_in_a_loop_and_one_behind_another_give_the_same(kind, jointly, wanted):
    rng = np.random.default_rng(1)
    tokens = jnp.asarray(rng.integers(0, VOCAB, (1, 2, 6)))
    positions = positions_of(jnp.ones_like(tokens), jnp.asarray([[4]]))
    prefix = jnp.asarray(rng.integers(0, VOCAB, (1, 4)))
    decoder = random_decoder(kind)

    def loss(adapter):
        if jointly:
            ahead = jnp.arange(4)[None]
            embedded = decoder.embed(prefix)
            of_prefix, hidden, _ = read_jointly(
                decoder, embedded, ahead, tokens, positions, wanted=wanted, adapter=adapter
            )
            return jnp.sin(hidden).sum() + (0 if wanted is not None else jnp.sin(of_prefix).sum())
        cache, _ = prefill(decoder, prefix, jnp.ones_like(prefix), adapter=adapter)
        hidden, _ = decoder(tokens, positions, cache, wanted=wanted, adapter=adapter)
        return jnp.sin(hidden).sum()

    found, loops = [], []
    for unroll, remat in ((1, False), (decoder.config.num_layers, False), (1, True)):
        decoder.unroll, decoder.remat = unroll, remat
        # A function of its own each time: else the first one's trace would do for the second.
        program = jax.jit(jax.value_and_grad(lambda adapter: loss(adapter)))
        loops.append(program.lower(random_adapter(kind)).as_text().count("stablehlo.while"))
        found.append(program(random_adapter(kind)))
    assert loops[0] > loops[1]
    for other in found[1:]:
        for a, b in zip(*map(jax.tree.leaves, (found[0], other)), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("remat", [False, True])
def test_a_stack_without_its_last_block_is_no_copy_of_the_kernels(remat):
    """Nor is a kernel kept for the backward pass: a stack of a layer less is in the program for
    what isn't a kernel alone.
    """
    layers, tokens = 5, jnp.zeros((1, 2, 6), jnp.int32)
    config = dataclasses.replace(random_decoder("llama").config, num_layers=layers)
    decoder = Decoder(config, rngs=nnx.Rngs(0), remat=remat)
    modules = decoder.linear_modules()
    adapter = Adapter(init_lora(jax.random.key(0), modules, layers, rank=3))
    graph, base = nnx.split(decoder)

    def loss(adapter, base):
        places = jnp.broadcast_to(jnp.arange(6), tokens.shape)
        wanted = jnp.asarray([[[5, 8]]])
        hidden, _ = nnx.merge(graph, base)(tokens, places, wanted=wanted, adapter=adapter)
        return jnp.sin(hidden).sum()

    text = jax.jit(jax.grad(loss)).lower(adapter, base).as_text()
    for width_in, width_out in modules.values():
        assert f"tensor<{layers}x{width_in}x{width_out}xf32>" in text
        assert f"tensor<{layers - 1}x{width_in}x{width_out}xf32>" not in text
        assert f"tensor<{layers - 1}x{width_in}x3xf32>" in text
    # The last block's MLP meets the two wanted places, and the others' every slot.
    for slots in ("1x1x2", "1x2x6"):
        assert f"tensor<{slots}x{config.mlp_dim}xf32>" in text
