"""First values of a soft prompt."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from pintern.adapters.soft_prompt import init_soft_prompt
from pintern.errors import UserError

KEY = jax.random.key(3)
EMBEDDING = 0.05 * jax.random.normal(jax.random.key(0), (40, 16)) + 0.01


def init(how, length=6, key=KEY, embedding=EMBEDDING, **options):
    return init_soft_prompt(key, length, init=how, embedding=embedding, **options)


def row_ids(prompt) -> list[int]:
    """Which embedding row each virtual token is; fails if one is none of them."""
    same = (np.asarray(prompt)[:, None] == np.asarray(EMBEDDING)[None]).all(-1)
    assert same.any(1).all()
    return same.argmax(1).tolist()


def test_uniform_has_the_spread_of_the_embedding():
    prompt = init("uniform", length=500)
    sigma = float(EMBEDDING.std())
    assert prompt.shape == (500, 16)
    assert float(prompt.std()) == pytest.approx(sigma, rel=0.03)
    assert float(jnp.abs(prompt).max()) <= 3**0.5 * sigma
    assert float(jnp.abs(prompt).max()) > 1.6 * sigma


@pytest.mark.parametrize("how", ["uniform", "vocabulary"])
def test_random_init_follows_the_key(how):
    assert jnp.array_equal(init(how), init(how))
    assert not jnp.array_equal(init(how), init(how, key=jax.random.key(4)))


def test_vocabulary_draws_distinct_rows():
    assert len(set(row_ids(init("vocabulary", length=40)))) == 40
    assert len(row_ids(init("vocabulary", length=50))) == 50


@pytest.mark.parametrize(
    ("length", "expected"), [(5, [7, 8, 9, 7, 8]), (3, [7, 8, 9]), (2, [7, 8])]
)
def test_text_is_repeated_or_cut(length, expected):
    assert row_ids(init("text", length=length, text_ids=[7, 8, 9])) == expected


def test_the_prompt_is_float32_whatever_the_base():
    half = EMBEDDING.astype(jnp.bfloat16)
    for how, options in [("uniform", {}), ("vocabulary", {}), ("text", {"text_ids": [1]})]:
        assert init(how, embedding=half, **options).dtype == jnp.float32


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_file_gives_back_what_was_saved(tmp_path, dtype):
    saved = np.arange(96).reshape(6, 16).astype(dtype)
    save_file({"prompt_embeddings": saved}, tmp_path / "p.safetensors")
    prompt = init("file", path=tmp_path / "p.safetensors")
    assert prompt.dtype == jnp.float32
    np.testing.assert_array_equal(prompt, saved.astype(np.float32))


@pytest.mark.parametrize(
    ("tensors", "fragment"),
    [
        ({"prompt_embeddings": np.zeros((5, 16), np.float32)}, r"\(5, 16\); expected \(6, 16\)"),
        ({"prompt_embeddings": np.zeros((6, 8), np.float32)}, r"\(6, 8\); expected \(6, 16\)"),
        ({"prompt_embeddings": np.full((6, 16), np.nan, np.float32)}, "NaN"),
        ({"prompt_embeddings": np.zeros((6, 16), int)}, "stored as I64. It is read from F64"),
        ({"weight": np.zeros((6, 16), np.float32)}, "no tensor 'prompt_embeddings'.* weight"),
    ],
)
def test_a_file_that_does_not_fit(tmp_path, tensors, fragment):
    save_file(tensors, tmp_path / "p.safetensors")
    with pytest.raises(UserError, match=fragment):
        init("file", path=tmp_path / "p.safetensors")


def test_a_file_that_is_none(tmp_path):
    (tmp_path / "p.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(UserError, match="truncated"):
        init("file", path=tmp_path / "p.safetensors")
    with pytest.raises(UserError, match="No soft prompt file"):
        init("file", path=tmp_path / "absent.safetensors")


@pytest.mark.parametrize(
    ("how", "options", "fragment"),
    [
        ("text", {}, "empty or not given"),
        ("text", {"text_ids": []}, "empty or not given"),
        ("text", {"text_ids": [1, 40]}, "token id 40.* 40 rows"),
        ("text", {"text_ids": [-1]}, "token id -1"),
        ("file", {}, "no path"),
        ("uniform", {"length": 0}, "length is 0"),
    ],
)
def test_a_mistake_is_named(how, options, fragment):
    with pytest.raises(UserError, match=fragment):
        init(how, **options)
