"""The layout that fused attention kernels are handed gives what our own formulation gives."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import VOCAB, random_decoder

from pintern.errors import UserError
from pintern.models.attention import KV, Masks
from pintern.models.decoder import Decoder
from pintern.models.fused import choose_attention, fused_attention
from pintern.models.shared_prefix import positions_of, prefill

pytestmark = pytest.mark.usefixtures("full_precision")

GROUPS, ROWS, QUERIES, PREFIX, DIM = 2, 3, 5, 4, 8


def drawn(*shape: int, seed: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("shared", [True, False])
def test_values_and_gradients_equal_the_two_segments(heads, shared):
    kv_heads = 2
    attention = random_decoder("llama").blocks.attention
    attention.kv_heads, attention.scale = kv_heads, 0.3
    rng = np.random.default_rng(0)
    own_mask = np.tril(np.ones((QUERIES, QUERIES), bool)) & (
        rng.random((GROUPS, ROWS, 1, QUERIES)) < 0.8
    )
    own_mask[..., np.arange(QUERIES), np.arange(QUERIES)] = True
    prefix_mask = np.broadcast_to(
        rng.random((GROUPS, 1, 1, PREFIX)) < 0.7, (GROUPS, ROWS, QUERIES, PREFIX)
    )
    masks = Masks(jnp.asarray(prefix_mask) if shared else None, jnp.asarray(own_mask))
    q = drawn(GROUPS, ROWS, QUERIES, heads, DIM, seed=1)
    own = KV(*(drawn(GROUPS, kv_heads, ROWS, QUERIES, DIM, seed=s) for s in (2, 3)))
    prefix = KV(*(drawn(GROUPS, kv_heads, PREFIX, DIM, seed=s) for s in (4, 5)))
    prefix = prefix if shared else None
    fused = functools.partial(fused_attention, scale=0.3, implementation="xla")
    wanted, pull = jax.vjp(lambda *x: attention.attend(*x, masks), q, prefix, own)
    found, pull_fused = jax.vjp(lambda *x: fused(*x, masks), q, prefix, own)
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    push = drawn(*wanted.shape, seed=6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=5e-6), pull_fused(push), pull(push)
    )


def test_no_mask_is_needed_where_rows_are_in_order_with_padding_behind():
    attention = random_decoder("llama").blocks.attention
    attention.kv_heads, attention.scale = 2, 0.3
    real = np.arange(QUERIES) < np.array([[QUERIES], [2], [4]])
    mask = np.tril(np.ones((QUERIES, QUERIES), bool)) & real[:, None]
    mask = jnp.asarray(np.broadcast_to(mask, (GROUPS, ROWS, QUERIES, QUERIES)))
    q = drawn(GROUPS, ROWS, QUERIES, 4, DIM, seed=1)
    own = KV(*(drawn(GROUPS, 2, ROWS, QUERIES, DIM, seed=s) for s in (2, 3)))
    push = drawn(GROUPS, ROWS, QUERIES, 4 * DIM, seed=6) * real[..., None]
    found = []
    for causal, hides in ((False, mask), (True, jnp.zeros_like(mask))):
        fused = functools.partial(fused_attention, scale=0.3, implementation="xla", causal=causal)
        out, pull = jax.vjp(
            lambda q, own, f=fused, m=hides: f(q, None, own, Masks(None, m)), q, own
        )
        found.append((out * real[..., None], pull(push)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-6), *found)


def hidden_of(decoder: Decoder) -> np.ndarray:
    """Of padded rows behind a padded prefix; zero where padded."""
    rng = np.random.default_rng(1)
    tokens = jnp.asarray(rng.integers(0, VOCAB, (1, 2, 6)))
    valid = jnp.asarray([[[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0]]])
    prefix = jnp.asarray(rng.integers(0, VOCAB, (1, 4)))
    cache, start = prefill(decoder, prefix, jnp.asarray([[1, 1, 1, 0]]))
    hidden, _ = decoder(tokens, positions_of(valid, start[:, None]), cache)
    return np.asarray(hidden * valid[..., None])


def test_a_decoder_reads_prefix_and_rows_the_same_with_it():
    """The prefix without a mask, the rows with one."""
    decoder = random_decoder("llama")
    wanted = hidden_of(decoder)
    decoder.blocks.attention.implementation = "cudnn"
    with pytest.raises(Exception, match=r"(?i)cudnn|gpu|cuda"):  # it is really asked for
        hidden_of(decoder)
    real = jax.nn.dot_product_attention
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            jax.nn,
            "dot_product_attention",
            lambda *x, implementation, **more: real(*x, implementation="xla", **more),
        )
        np.testing.assert_allclose(hidden_of(decoder), wanted, atol=1e-5)


def test_an_odd_number_of_queries_is_not_for_cudnn():
    """As a soft prompt has, or a single token; here it would be refused."""
    decoder = random_decoder("llama")
    decoder.blocks.attention.implementation = "cudnn"
    tokens = jnp.zeros((1, 1, 3), jnp.int32)
    assert decoder(tokens, jnp.arange(3)[None, None])[0].shape[:3] == tokens.shape


@pytest.mark.parametrize("wanted", ["auto", "xla"])
def test_cudnn_is_taken_where_it_can_be_had_and_refused_elsewhere(wanted):
    decoder = random_decoder("llama")
    with pytest.raises(UserError, match="NVIDIA"):
        choose_attention(decoder.blocks, decoder.config, jnp.dtype("bfloat16"), "cudnn")
    choose_attention(decoder.blocks, decoder.config, jnp.dtype("bfloat16"), wanted)
    assert decoder.blocks.attention.implementation == "xla"


@pytest.mark.parametrize(("capability", "reason"), [("gfx90a", "is gfx90a"), ("7.5", "8.0")])
def test_other_gpus_read_without_it(capability, reason, monkeypatch):
    device = types.SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [device])
    decoder = random_decoder("llama")
    choose_attention(decoder.blocks, decoder.config, jnp.dtype("bfloat16"), "auto")
    assert decoder.blocks.attention.implementation == "xla"
    with pytest.raises(UserError, match=reason):
        choose_attention(decoder.blocks, decoder.config, jnp.dtype("bfloat16"), "cudnn")


@pytest.mark.parametrize(
    ("changes", "dtype", "reason"),
    [
        ({}, "bfloat16", None),
        ({}, "float32", "bfloat16"),
        ({"positions": "alibi"}, "bfloat16", "ALiBi"),
        ({"score_cap": 50.0}, "bfloat16", "soft cap"),
        ({"head_dim": 12}, "bfloat16", "multiples of 8"),
        ({"head_dim": 256}, "bfloat16", "up to 128"),
    ],
)
def test_auto_asks_whether_a_gpu_cudnn_and_the_family_go_together(
    changes, dtype, reason, monkeypatch
):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(compute_capability="9.0")])
    decoder = random_decoder("llama")
    config = dataclasses.replace(decoder.config, **{"head_dim": 64, **changes})
    choose_attention(decoder.blocks, config, jnp.dtype(dtype), "auto")
    assert decoder.blocks.attention.implementation == ("xla" if reason else "cudnn")
    if reason:
        with pytest.raises(UserError, match=reason):
            choose_attention(decoder.blocks, config, jnp.dtype(dtype), "cudnn")
