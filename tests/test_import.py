"""Adapter directories in: to start a run or be evaluated, and every way for one to be wrong."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import tiny
from adapters import checkpoint
from safetensors.numpy import load_file, save_file
from tiny_models import random_adapter

from pintern.adapters.adapter import Adapter
from pintern.assemble import fresh_adapter, new_adapter
from pintern.config import validate
from pintern.errors import UserError
from pintern.interop.read import read_adapter
from pintern.interop.write import Export, write_export

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Q = "base_model.model.model.layers.1.self_attn.q_proj"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """LoRA, soft prompt and both, of a tiny random Llama."""
    folder = tmp_path_factory.mktemp("adapters")
    both = random_adapter("llama", virtual=3)
    for name, adapter, form in (
        ("lora", both.replace(soft_prompt=None), "peft"),
        ("soft_prompt", both.replace(lora={}, scale=1.0), "soft_prompt"),
        ("both", both, "peft"),
    ):
        made = Export(adapter, checkpoint("llama"), "some/base", 3.0, False)
        write_export(folder / name, form, made, "")
    return folder


def foreign(directory):
    """As PEFT itself would have written it: without pintern.json."""
    (directory / "pintern.json").unlink()


def options(**changes):
    def spoil(directory):
        path = directory / CONFIG
        content = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))

    return spoil


def tensors(change):
    def spoil(directory):
        held = load_file(directory / WEIGHTS)
        change(held)
        save_file({k: np.ascontiguousarray(v) for k, v in held.items()}, directory / WEIGHTS)

    return spoil


def put(name, value):
    return tensors(lambda held: held.update({name: value}))


def manifest(**changes):
    def spoil(directory):
        path = directory / "pintern.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return spoil


def text(name, content):
    return lambda directory: (directory / name).write_text(content)


def truncate(directory):
    path = directory / WEIGHTS
    path.write_bytes(path.read_bytes()[:-50])


def only_pickle(directory):
    (directory / WEIGHTS).rename(directory / "adapter_model.bin")


def a_run(directory):
    (directory / CONFIG).unlink()
    (directory / "checkpoints").mkdir()


def a_model(directory):
    (directory / CONFIG).unlink()
    (directory / "config.json").write_text("{}")


def nan(name):
    def change(held):
        held[name] = held[name].copy()
        held[name].flat[1] = np.nan

    return tensors(change)


OTHER = {"name": "some/other", "family": "llama", "fingerprint": "0" * 64}
DAMAGED = {
    "directory missing": (shutil.rmtree, r"No adapter directory '.*lora'"),
    "config missing": (lambda d: (d / CONFIG).unlink(), r"No adapter_config\.json in"),
    "a run's folder": (a_run, r"It is a run's folder: python -m pintern\.export --workdir="),
    "a model's folder": (a_model, r"holds a whole model.*no adapter"),
    "config malformed": (text(CONFIG, "{,"), r"adapter_config\.json is not valid JSON"),
    "config no object": (text(CONFIG, "[]"), r"adapter_config\.json holds a JSON list"),
    "weights missing": (lambda d: (d / WEIGHTS).unlink(), r"No adapter_model\.safetensors in"),
    "only pickle": (only_pickle, r"only the pickle file.*Pickle is never loaded"),
    "truncated": (truncate, r"adapter_model\.safetensors is truncated"),
    "another method": (options(peft_type="IA3"), r"peft_type is 'IA3'.*LORA or PROMPT_TUNING"),
    "method missing": (options(peft_type=...), r"peft_type is None"),
    "another task": (options(task_type="SEQ_CLS"), r"task_type is 'SEQ_CLS', which is more than"),
    "another base": (manifest(base=OTHER), r"adapter of another base: some/other.*000000000000"),
    "manifest malformed": (text("pintern.json", "]"), r"pintern\.json is not valid JSON"),
    "manifest of another schema": (manifest(schema=9), r"schema 9; this version reads 1"),
    "manifest without a base": (manifest(base={}), r"doesn't say which base"),
    "manifest without parts": (manifest(parts={}), r"has parts \{\}"),
    "manifest that leads away": (manifest(parts={"lora": "../x"}), r"names the part '\.\./x'"),
}
A, B = f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"
DAMAGED_LORA = {
    "rank in config": (options(r=8), r"says r=8, but .*lora_A\.weight has rank 2"),
    "rank of one matrix": (put(B, np.zeros((16, 5), np.float32)), rf"r=2, but {B} has rank 5"),
    "no rank": (options(r=...), r"r is None; it must be a positive whole number"),
    "rank no number": (options(r="2"), r"r is '2'"),
    "alpha no number": (options(lora_alpha=None), r"lora_alpha is None; it must be a positive n"),
    "dropout": (options(lora_dropout=2), r"lora_dropout is 2"),
    "wrong shape": (put(A, np.zeros((2, 17), np.float32)), r"has shape \(2, 17\).*needs \(2, 16\)"),
    "wrong shape out": (put(B, np.zeros((9, 2), np.float32)), r"shape \(9, 2\).*needs \(16, 2\)"),
    "not a matrix": (put(A, np.zeros(3, np.float32)), r"shape \(3,\).*needs \(2, 16\)"),
    "key missing": (tensors(lambda t: t.pop(B)), rf"lacks {B}"),
    "layer missing": (
        tensors(lambda t: [t.pop(k) for k in list(t) if "layers.1" in k]),
        r"lacks .*layers\.1.* and 10 more",
    ),
    "module missing": (
        tensors(lambda t: [t.pop(k) for k in list(t) if "q_proj" in k]),
        r"lacks .*q_proj",
    ),
    "empty": (tensors(lambda t: t.clear()), r"lacks .* and 24 more"),
    "extra key": (put("lm_head.weight", np.zeros(3, np.float32)), r"no LoRA weights.*: lm_head"),
    "more layers": (
        put(A.replace("layers.1", "layers.2"), np.zeros((2, 16), np.float32)),
        r"llama base with 2 layers: .*layers\.2",
    ),
    "another family's names": (
        put("base_model.model.transformer.h.0.attn.c_attn.lora_A.weight", np.zeros(3, np.float32)),
        r"no LoRA weights of this llama base.*c_attn",
    ),
    "nan": (nan(B), rf"{B} in .* holds NaN"),
    "infinite": (put(A, np.full((2, 16), np.inf, np.float32)), rf"{A} in .* holds NaN or inf"),
    "quantised": (put(A, np.zeros((2, 16), np.int8)), rf"{A} in .* is stored as I8"),
    "targets missing": (options(target_modules=None), r"target_modules is None"),
    "targets malformed": (options(target_modules=[3]), r"target_modules is \[3\]"),
    "targets no pattern": (options(target_modules="(q_proj"), r"target_modules is '\(q_proj'"),
    "exclusion malformed": (options(exclude_modules=3), r"exclude_modules is 3"),
    "no kind": (options(peft_type=["LORA"]), r"peft_type is \['LORA'\], which can't be read"),
    "dora": (options(use_dora=True), r"use_dora is True, which is more than plain LoRA"),
    "modules_to_save": (options(modules_to_save=["lm_head"]), r"modules_to_save is \['lm_head'\]"),
    "bias": (options(bias="lora_only"), r"bias is 'lora_only'"),
    "lora_bias": (options(lora_bias=True), r"lora_bias is True"),
    "rank_pattern": (options(rank_pattern={"q_proj": 4}), r"rank_pattern is \{'q_proj': 4\}"),
    "alpha_pattern": (options(alpha_pattern={"q_proj": 4}), r"alpha_pattern is"),
    "layers_to_transform": (options(layers_to_transform=[0]), r"layers_to_transform is \[0\]"),
    "pissa": (options(init_lora_weights="pissa"), r"init_lora_weights is 'pissa'"),
    "an option of tomorrow": (options(use_magic=True), r"use_magic is True, which is more than"),
}
SOFT = "prompt_embeddings"
DAMAGED_SOFT = {
    "no length": (options(num_virtual_tokens=...), r"num_virtual_tokens is None"),
    "length in config": (options(num_virtual_tokens=4), r"num_virtual_tokens=4, but .* has 3 rows"),
    "width in config": (options(token_dim=8), r"token_dim is 8; this base is 16 wide"),
    "wrong width": (put(SOFT, np.zeros((3, 8), np.float32)), r"shape \(3, 8\).*needs \(3, 16\)"),
    "tensor missing": (
        tensors(lambda t: t.update(embedding=t.pop(SOFT))),
        r"lacks prompt_embeddings\. It has: embedding",
    ),
    "extra tensor": (put("head", np.zeros(2, np.float32)), r"more than a soft prompt: head"),
    "nan": (nan(SOFT), r"prompt_embeddings in .* holds NaN"),
    "two submodules": (options(num_transformer_submodules=2), r"submodules is 2, which is more"),
    "modules_to_save": (options(modules_to_save=["x"]), r"modules_to_save is \['x'\]"),
    "another base": (manifest(base=OTHER), r"adapter of another base"),
}
CASES = [
    *(("lora", case) for case in (DAMAGED | DAMAGED_LORA).items()),
    *(("soft_prompt", case) for case in DAMAGED_SOFT.items()),
]


@pytest.mark.parametrize(
    ("kind", "spoil", "said"),
    [(kind, *case) for kind, (_, case) in CASES],
    ids=[f"{kind}: {name}" for kind, (name, _) in CASES],
)
def test_a_damaged_adapter_is_named(tmp_path, sound, kind, spoil, said):
    directory = tmp_path / kind
    shutil.copytree(sound / kind, directory)
    spoil(directory)
    with pytest.raises(UserError, match=said) as caught:
        read_adapter(directory, checkpoint("llama"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["lora", "soft_prompt"])
def test_a_foreign_directory_is_taken_where_every_shape_fits(tmp_path, sound, kind):
    directory = shutil.copytree(sound / kind, tmp_path / "adapter")
    foreign(directory)
    # What PEFT writes beside what we write, and what an old or a newer one leaves out or adds.
    extra = {"peft_version": "9.9", "megatron_core": "megatron.core", "loftq_config": {}}
    options(**extra, use_tomorrow=False, use_dora=..., num_layers=None)(directory)
    llama = checkpoint("llama")
    assert read_adapter(directory, dataclasses.replace(llama, fingerprint="another")) is not None
    with pytest.raises(UserError, match="another base"):
        read_adapter(sound / kind, dataclasses.replace(llama, fingerprint="another"))


@pytest.mark.parametrize(
    ("targets", "excluded"),
    [
        ("all-linear", None),
        (r".*\.(q|k|v|o|gate|up|down)_proj", None),
        (["self_attn.q_proj", "k_proj", "v_proj", "o_proj", "mlp.gate_proj", "up_proj"], ["x"]),
    ],
)
def test_targets_are_read_as_peft_reads_them(tmp_path, sound, targets, excluded):
    directory = shutil.copytree(sound / "lora", tmp_path / "adapter")
    options(target_modules=targets, exclude_modules=excluded)(directory)
    # The last ones don't name down_proj, whose tensors are there: those speak for themselves.
    assert len(read_adapter(directory, checkpoint("llama")).lora) == 7


def test_an_excluded_module_needs_no_tensors(tmp_path, sound):
    directory = shutil.copytree(sound / "lora", tmp_path / "adapter")
    options(target_modules="all-linear", exclude_modules=["q_proj"])(directory)
    tensors(lambda t: [t.pop(k) for k in list(t) if "q_proj" in k])(directory)
    assert "attention.query" not in read_adapter(directory, checkpoint("llama")).lora


def tiny_adapter(**changes) -> Adapter:
    """Of the tiny run's shape, and no fresh one."""
    parts = dataclasses.replace(tiny.parts(), config=tiny.config(**changes))
    return jax.tree.map(lambda x: x + 0.25, fresh_adapter(parts))


def exported(folder, adapter, form="peft"):
    made = Export(adapter, tiny.parts().checkpoint, "some/base", 4.0, False)
    return write_export(folder, form, made, "")


def start(folder, **changes) -> Adapter:
    config = validate(tiny.config(adapter__init_from=str(folder), **changes))
    return new_adapter(dataclasses.replace(tiny.parts(), config=config))


def assert_same(one: Adapter, two: Adapter) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_a_run_starts_from_what_a_folder_holds(tmp_path):
    both = tiny_adapter(adapter__soft_prompt=2)
    folder = exported(tmp_path / "both", both)
    assert_same(start(folder, adapter__soft_prompt=2), both)
    # One part given, the other fresh.
    fresh = fresh_adapter(
        dataclasses.replace(tiny.parts(), config=tiny.config(adapter__soft_prompt=2))
    )
    from_lora = start(folder / "lora", adapter__soft_prompt=2)
    assert_same(from_lora, both.replace(soft_prompt=fresh.soft_prompt))
    from_soft = start(folder / "soft_prompt", adapter__soft_prompt=2)
    assert_same(from_soft, both.replace(lora=fresh.lora))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"adapter__rank": 4}, r"LoRA of rank 2 .* the config makes rank 4.*adapter\.rank=2 "),
        ({"adapter__alpha": 8.0}, r"scale 2 .*scale 4 .*adapter\.alpha=4 "),
        ({"adapter__rank_stabilised": True}, r"adapter\.alpha=2\.82843 "),
        ({"adapter__targets": ("mlp.*",)}, r"adapter\.targets=.*attention\.query"),
        ({"adapter__targets": (), "adapter__soft_prompt": 2}, r"on nothing"),
        ({"adapter__soft_prompt": 3}, r"soft_prompt is 3\. Set config\.adapter\.soft_prompt=2"),
        ({}, r"2 virtual tokens; config\.adapter\.soft_prompt is 0"),
        ({"adapter__soft_prompt_init": "file"}, r"init_from and config\.adapter\.soft_prompt_file"),
    ],
)
def test_a_config_that_would_make_another_adapter_is_refused(tmp_path, changes, said):
    folder = exported(tmp_path / "both", tiny_adapter(adapter__soft_prompt=2))
    with pytest.raises(UserError, match=said):
        start(folder, **changes)


@pytest.mark.slow
def test_an_adapter_is_evaluated_without_a_run(tmp_path):
    """A foreign directory, a config and a fresh folder do; virtual tokens count as tokens."""
    folder = exported(tmp_path / "mine", tiny_adapter(adapter__soft_prompt=2))
    foreign(folder)
    shutil.rmtree(folder / "lora")
    for path in (folder / "soft_prompt").iterdir():
        shutil.copy(path, folder)
    foreign(folder)
    config = f"--config={tiny.config_file(tmp_path, tiny.config())}"
    given = (f"--workdir={tmp_path / 'evaluations'}", f"--adapter={folder}")
    code, out, err = tiny.run("-m", "pintern.evaluate", *given, config)
    assert code == 0, err
    (scores,) = (tmp_path / "evaluations" / "eval").glob("adapter-mine-*/scores.json")
    assert (
        json.loads(scores.read_text())["tokens"]["template"] == len(tiny.parts().tokenizer.bos) + 2
    )
    assert "adapter-mine" in out
