"""Checkpoints in and out: round trips, and every way in which a directory can be wrong."""

import functools
import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pintern.errors import UserError
from pintern.models.families import FAMILIES, decoder_config
from pintern.models.layout import parameters_by_path, places_of
from pintern.models.load import Checkpoint, check_tokenizer, init_model, load_model, save_model

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
EMBEDDING, BIAS = "transformer.wte.weight", "transformer.h.1.attn.c_attn.bias"


@functools.cache
def random_llama() -> Checkpoint:
    return init_model(LLAMA, seed=4)


@pytest.fixture
def copied(tmp_path):
    """A directory with the golden GPT-2, to be spoilt."""
    shutil.copytree(GPT2, tmp_path / "model")
    return tmp_path / "model"


def retensor(directory: Path, change) -> None:
    """Rewrites the weights after `change` had its way with the dict of tensors."""
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def reconfigure(directory: Path, **options) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **options}))


def weights(checkpoint) -> dict[str, np.ndarray]:
    return {path: np.asarray(x) for path, x in parameters_by_path(checkpoint.decoder).items()}


def assert_same_weights(one, two) -> None:
    assert one.keys() == two.keys()
    for path, array in one.items():
        np.testing.assert_array_equal(array, two[path], err_msg=path)


def _spoil_text(name: str, text: str):
    return lambda d: (d / name).write_text(text)


def _truncate(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _only_pickle(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def _index(content):
    def spoil(directory: Path) -> None:
        (directory / "model.safetensors").rename(directory / "model-00001-of-00002.safetensors")
        (directory / "model.safetensors.index.json").write_text(json.dumps(content))

    return spoil


def _shards(*files: str):
    return _index({"weight_map": {f"tensor{i}": file for i, file in enumerate(files)}})


def _tensors(change):
    return lambda directory: retensor(directory, change)


def _set(tensors: dict, name: str, value) -> None:
    tensors[name] = value


def _nan(tensors: dict) -> None:
    tensors[BIAS][3] = np.nan


def _inf(tensors: dict) -> None:
    tensors[EMBEDDING][1, 2] = -np.inf


def _head_of_another(tensors: dict) -> None:
    tensors["lm_head.weight"] = tensors[EMBEDDING] + 1


BROKEN = {
    "directory missing": (shutil.rmtree, r"No model directory '.*model'"),
    "config missing": (lambda d: (d / "config.json").unlink(), r"No config\.json in"),
    "config malformed": (_spoil_text("config.json", "{,"), r"config\.json is not valid JSON"),
    "config no object": (_spoil_text("config.json", "[]"), r"config\.json holds a JSON list"),
    "weights missing": (
        lambda d: (d / "model.safetensors").unlink(),
        r"No model\.safetensors and no model\.safetensors\.index\.json",
    ),
    "only pickle": (
        _only_pickle,
        r"pytorch_model\.bin.*Pickle is never loaded.*save_pretrained\('.*', "
        r"safe_serialization=True\)",
    ),
    "shard missing": (
        _shards("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
        r"names model-00002-of-00002\.safetensors, which is missing \(1 of 2 shards\)",
    ),
    "shard outside": (_shards("../other.safetensors"), r"names the shard '\.\./other"),
    "index without a map": (_index({}), r"index\.json has no weight_map"),
    "truncated": (_truncate, r"model\.safetensors is truncated, or no safetensors file"),
    "not safetensors": (_spoil_text("model.safetensors", "version https://lfs"), "truncated"),
    "tensor missing": (_tensors(lambda t: t.pop(BIAS)), rf"Tensor {BIAS} is missing"),
    "many tensors missing": (
        _tensors(lambda t: [t.pop(name) for name in list(t) if "h.1" in name]),
        r"Tensors transformer\.h\.1\..* and 8 more are missing",
    ),
    "tensor extra": (
        _tensors(lambda t: _set(t, "transformer.h.2.ln_1.bias", np.zeros(32, np.float32))),
        r"Tensor transformer\.h\.2\.ln_1\.bias is in .* not part of a gpt2 model",
    ),
    "tied mismatch": (
        _tensors(_head_of_another),
        rf"Tied mismatch.*lm_head\.weight differs from {EMBEDDING}",
    ),
    "untied mismatch": (
        lambda d: reconfigure(d, tie_word_embeddings=False),
        r"Untied mismatch.*lm_head\.weight is missing.*Set tie_word_embeddings to true",
    ),
    "wrong shape": (
        _tensors(lambda t: _set(t, BIAS, np.zeros(95, np.float32))),
        rf"{BIAS} .*has shape \(95,\); expected \(96,\)",
    ),
    "quantised": (
        _tensors(lambda t: _set(t, BIAS, np.zeros(96, np.int8))),
        rf"{BIAS} .*is stored as I8.*quantised",
    ),
    "nan": (_tensors(_nan), rf"{BIAS} .*holds NaN or infinite values"),
    "inf": (_tensors(_inf), rf"{EMBEDDING} .*holds NaN or infinite values"),
    "another size": (
        lambda d: reconfigure(d, vocab_size=98),
        rf"{EMBEDDING} .*has shape \(97, 32\); expected \(98, 32\)",
    ),
    "another depth": (lambda d: reconfigure(d, n_layer=1), r"not part of a gpt2 model"),
    "another family": (lambda d: reconfigure(d, model_type="mamba"), r"'mamba'.*gpt2, .*llama"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_checkpoint_is_named(copied, case):
    spoil, fragment = BROKEN[case]
    spoil(copied)
    with pytest.raises(UserError, match=fragment) as caught:
        load_model(copied)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "raw", [LLAMA, {**LLAMA, "tie_word_embeddings": True, "mlp_bias": False}, GPT2_RAW]
)
@pytest.mark.parametrize("max_shard_bytes", [5_000_000_000, 6_000], ids=["single", "sharded"])
def test_round_trip(tmp_path, raw, max_shard_bytes):
    made = random_llama() if raw is LLAMA else init_model(raw, seed=4)
    save_model(
        tmp_path,
        made.decoder,
        made.family,
        raw,
        dtype="float32",
        max_shard_bytes=max_shard_bytes,
    )
    sharded = max_shard_bytes < 1_000_000
    assert (tmp_path / "model.safetensors").is_file() != sharded
    assert len(list(tmp_path.glob("*.safetensors"))) > 2 or not sharded
    read = load_model(tmp_path)
    assert_same_weights(weights(read), weights(made))
    assert read.config == made.config
    assert read.fingerprint == made.fingerprint


def test_every_shard_keeps_to_the_limit(tmp_path):
    made = random_llama()
    save_model(tmp_path, made.decoder, made.family, LLAMA, dtype="float32", max_shard_bytes=6_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    sizes = [
        sum(tensor.nbytes for tensor in load_file(path).values())
        for path in tmp_path.glob("*.safetensors")
    ]
    assert max(sizes) <= 6_000
    assert index["metadata"]["total_size"] == sum(sizes)
    assert set(index["weight_map"]) == {p.name for p in places_of(made.family, made.config)}


def test_the_golden_file_is_written_back_as_it_was(tmp_path):
    read = load_model(GPT2)
    save_model(tmp_path, read.decoder, read.family, read.raw_config, dtype="float32")
    assert_same_weights(
        load_file(tmp_path / "model.safetensors"), load_file(GPT2 / "model.safetensors")
    )
    written = json.loads((tmp_path / "config.json").read_text())
    assert written.pop("torch_dtype") == "float32"
    assert written == {k: v for k, v in GPT2_RAW.items() if k != "dtype"}


def test_bfloat16_in_storage_and_in_memory(tmp_path):
    made = random_llama()
    save_model(tmp_path, made.decoder, made.family, LLAMA)
    stored = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {np.dtype(ml_dtypes.bfloat16)}
    rounded = {k: v.astype(ml_dtypes.bfloat16) for k, v in weights(made).items()}
    assert_same_weights(weights(load_model(tmp_path, dtype=jnp.bfloat16)), rounded)
    in_float32 = weights(load_model(tmp_path))
    assert {array.dtype for array in in_float32.values()} == {np.dtype(np.float32)}
    assert_same_weights(in_float32, {k: v.astype(np.float32) for k, v in rounded.items()})


def test_weights_that_overflow_the_dtype_in_memory_are_named(copied):
    retensor(copied, lambda t: _set(t, BIAS, np.full(96, 1e6, np.float32)))
    load_model(copied)
    with pytest.raises(UserError, match=f"{BIAS} .*infinite values, read as float16"):
        load_model(copied, dtype=jnp.float16)


def test_hub_files_without_the_module_prefix(copied):
    def strip(tensors: dict) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        # Old files also hold the causal mask as a buffer.
        tensors["h.0.attn.bias"] = np.tril(np.ones((1, 1, 64, 64), np.uint8))
        tensors["h.1.attn.masked_bias"] = np.array(-1e4, np.float32)
        tensors["lm_head.weight"] = tensors["wte.weight"].copy()

    retensor(copied, strip)
    assert_same_weights(weights(load_model(copied)), weights(load_model(GPT2)))
    assert load_model(copied).fingerprint == load_model(GPT2).fingerprint


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_a_tied_table_under_the_name_of_the_output_matrix(copied, prefix):
    def rename(tensors: dict) -> None:
        tensors["lm_head.weight"] = tensors.pop(EMBEDDING)
        for name in list(tensors):
            tensors[name.replace("transformer.", prefix)] = tensors.pop(name)

    retensor(copied, rename)
    assert load_model(copied).fingerprint == load_model(GPT2).fingerprint
    reconfigure(copied, tie_word_embeddings=False)
    with pytest.raises(UserError, match=f"{EMBEDDING} is missing"):
        load_model(copied)


def test_the_fingerprint_tells_bases_apart(copied):
    base = load_model(GPT2).fingerprint
    reconfigure(copied, use_cache=False, resid_pdrop=0.0)
    assert load_model(copied).fingerprint == base
    reconfigure(copied, layer_norm_epsilon=1e-6)
    assert load_model(copied).fingerprint != base
    reconfigure(copied, layer_norm_epsilon=1e-5)
    retensor(copied, lambda t: _set(t, BIAS, np.nextafter(t[BIAS], np.float32(9))))
    assert load_model(copied).fingerprint != base


def test_random_weights_follow_the_seed(copied):
    one, same, other = (init_model(copied, seed=seed, dtype=jnp.bfloat16) for seed in (1, 1, 2))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert {array.dtype for array in weights(one).values()} == {np.dtype(ml_dtypes.bfloat16)}


def test_weights_are_not_overwritten(copied):
    read = load_model(copied)
    with pytest.raises(UserError, match=r"already holds model\.safetensors"):
        save_model(copied, read.decoder, read.family, read.raw_config)


def test_a_tokenizer_larger_than_the_embedding():
    config = decoder_config(FAMILIES["gpt2"], GPT2_RAW)
    check_tokenizer(97, config)
    check_tokenizer(90, config)
    with pytest.raises(UserError, match=r"98 tokens.*97 rows"):
        check_tokenizer(98, config)
