"""An export read back is the adapter that went out, in every format, for every family."""

import dataclasses
import json
import shlex
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from adapters import checkpoint
from flax import nnx
from safetensors.numpy import load_file
from tiny_models import CONFIGS, random_adapter

from pintern.adapters.adapter import Adapter
from pintern.assemble import assemble, fresh_adapter
from pintern.errors import UserError
from pintern.interop.compare import Difference, compare
from pintern.interop.manifest import read_manifest
from pintern.interop.model_card import render_card
from pintern.interop.modules import hub_modules, target_suffixes
from pintern.interop.read import read_adapter
from pintern.interop.vllm import lint_vllm
from pintern.interop.write import Export, write_export
from pintern.models.load import load_model
from pintern.models.merge import merge_lora
from pintern.models.quantize import quantize

FIXTURES = Path(__file__).parent / "fixtures"
ROWS = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8, 9, 7]]


def export(family: str = "llama", *, virtual: int = 0, **changes) -> Export:
    """Of a random adapter with scale 1.5 and rank 2."""
    adapter = changes.pop("adapter", None) or random_adapter(family, virtual=virtual)
    fields = {"alpha": 3.0, "rank_stabilised": False, **changes}
    return Export(adapter, checkpoint(family), "some/base", **fields)


def soft_only(virtual: int = 3) -> Adapter:
    return random_adapter("llama", virtual=virtual).replace(lora={}, scale=1.0)


def assert_same(one: Adapter, two: Adapter) -> None:
    assert jax.tree.structure(one.replace(scale=1.0)) == jax.tree.structure(two.replace(scale=1.0))
    assert one.scale == pytest.approx(two.scale)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("virtual", [0, 3])
@pytest.mark.parametrize("family", CONFIGS)
def test_peft_directories_hold_the_adapter(tmp_path, family, virtual):
    out = write_export(tmp_path / "out", "peft", export(family, virtual=virtual), "card")
    assert_same(read_adapter(out, checkpoint(family)), random_adapter(family, virtual=virtual))
    folders = {"lora", "soft_prompt"} if virtual else set()
    assert {p.name for p in out.iterdir() if p.is_dir()} == folders
    assert (out / "README.md").read_text() == "card"
    assert not (tmp_path / "out.partial").exists()


def test_a_soft_prompt_alone(tmp_path):
    out = write_export(tmp_path, "soft_prompt", export(adapter=soft_only()), "")
    assert_same(read_adapter(out, checkpoint("llama")), soft_only())
    assert list(load_file(out / "adapter_model.safetensors")) == ["prompt_embeddings"]


def test_a_soft_prompt_is_as_wide_as_the_embedding(tmp_path):
    """OPT-350m's embedding is narrower than the model."""
    base = load_model(FIXTURES / "opt_post")
    width = base.config.embed_dim
    assert width < base.config.model_dim
    soft = Adapter({}, jnp.ones((3, width)))
    made = Export(soft, base, "some/base", alpha=1.0, rank_stabilised=False)
    assert_same(read_adapter(write_export(tmp_path, "soft_prompt", made, ""), base), soft)


@pytest.mark.parametrize("family", CONFIGS)
def test_the_lora_update_is_the_one_that_peft_documents(tmp_path, family):
    """ΔW of the files, in the stored layout, equals merged minus base."""
    out = write_export(tmp_path / "lora", "peft", export(family), "")
    merged = write_export(tmp_path / "merged", "merged", export(family), "")
    plain = export(family, adapter=random_adapter(family, zero_b=True))
    base = load_file(write_export(tmp_path / "base", "merged", plain, "") / "model.safetensors")
    config = json.loads((out / "adapter_config.json").read_text())
    tensors = load_file(out / "adapter_model.safetensors")
    changed = load_file(merged / "model.safetensors")
    assert config["fan_in_fan_out"] == (family == "gpt2")
    count = 0
    for name, weight in base.items():
        key = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        if f"{key}A.weight" not in tensors:
            np.testing.assert_array_equal(changed[name], weight)
            continue
        count += 1
        delta = config["lora_alpha"] / config["r"] * tensors[f"{key}B.weight"]
        delta = delta @ tensors[f"{key}A.weight"]
        delta = delta.T if config["fan_in_fan_out"] else delta
        np.testing.assert_allclose(changed[name] - weight, delta, atol=1e-6)
    assert 2 * count == len(tensors) > 0


def test_the_rank_stabilised_scale_travels(tmp_path):
    adapter = random_adapter("llama").replace(scale=3.0 / 2**0.5)
    out = write_export(tmp_path, "peft", export(adapter=adapter, rank_stabilised=True), "")
    assert json.loads((out / "adapter_config.json").read_text())["use_rslora"] is True
    assert_same(read_adapter(out, checkpoint("llama")), adapter)


@pytest.mark.parametrize(
    ("family", "chosen", "suffixes"),
    [
        ("llama", ("attention.query", "mlp.down"), ["down_proj", "q_proj"]),
        ("gpt2", ("attention.output",), ["attn.c_proj"]),
        ("gpt2", ("attention.output", "mlp.down"), ["c_proj"]),
        ("gpt2", ("mlp.up", "mlp.down"), ["c_fc", "mlp.c_proj"]),
    ],
)
def test_target_modules_name_the_adapted_modules_and_no_other(tmp_path, family, chosen, suffixes):
    modules = hub_modules(checkpoint(family))
    assert target_suffixes(chosen, modules) == suffixes
    adapter = random_adapter(family)
    adapter = adapter.replace(lora={name: adapter.lora[name] for name in chosen})
    out = write_export(tmp_path, "peft", export(family, adapter=adapter), "")
    assert_same(read_adapter(out, checkpoint(family)), adapter)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("max_shard_bytes", [5_000_000_000, 6_000])
def test_merged_weights_load_and_compute_the_same(tmp_path, family, max_shard_bytes):
    made = export(family, max_shard_bytes=max_shard_bytes)
    out = write_export(tmp_path, "merged", made, "")
    sharded = max_shard_bytes < 1_000_000
    assert (out / "model.safetensors.index.json").exists() == sharded
    assert len(list(out.glob("*.safetensors"))) > 2 or not sharded
    found = compare(out, made.checkpoint, made.adapter, ROWS, jnp.float32)
    assert found.within
    assert found.positions == 14
    zero = random_adapter(family, zero_b=True)
    assert not compare(out, made.checkpoint, zero, ROWS, jnp.float32).within


def test_merging_is_in_float32_and_cast_once(tmp_path):
    out = write_export(tmp_path, "merged", export(dtype=jnp.bfloat16), "")
    merged = merge_lora(checkpoint("llama").decoder, random_adapter("llama"))
    found = load_model(out, dtype=jnp.bfloat16).decoder.blocks.mlp.down.kernel[...]
    exact = merged.blocks.mlp.down.kernel[...].astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(exact))
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert compare(out, checkpoint("llama"), random_adapter("llama"), ROWS, jnp.bfloat16).within


def test_merging_multiplies_in_float32_on_any_device():
    decoder, adapter = checkpoint("llama").decoder, random_adapter("llama")
    made = str(jax.make_jaxpr(lambda: nnx.state(merge_lora(decoder, adapter)))())
    assert made.count("dot_general[") == len(adapter.lora)
    assert made.count("Precision.HIGHEST") == 2 * len(adapter.lora)  # of either side


def test_merged_into_a_quantised_base_are_the_weights_that_it_stands_for(tmp_path):
    held = nnx.clone(checkpoint("llama").decoder)
    quantize(held)
    made = export()
    made = dataclasses.replace(made, checkpoint=dataclasses.replace(made.checkpoint, decoder=held))
    out = write_export(tmp_path, "merged", made, "")
    assert compare(out, made.checkpoint, made.adapter, ROWS, jnp.float32).within


def test_a_merged_value_that_the_dtype_cannot_hold_is_named(tmp_path):
    loud = random_adapter("llama").replace(scale=1e6)
    with pytest.raises(UserError, match=r"Tensor model\.layers.* isn't finite in float16"):
        write_export(tmp_path / "out", "merged", export(adapter=loud, dtype=jnp.float16), "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["peft", "merged"])
def test_a_hybrid_goes_out_as_siblings_with_a_manifest(tmp_path, form):
    made = export(virtual=3)
    out = write_export(tmp_path, form, made, "")
    main = {"peft": "lora", "merged": "model"}[form]
    manifest = read_manifest(out)
    assert manifest.parts == {main: main, "soft_prompt": "soft_prompt"}
    assert manifest.base == made.base
    assert compare(out, made.checkpoint, made.adapter, ROWS, jnp.float32).within
    without = made.adapter.replace(soft_prompt=made.adapter.soft_prompt + 1)
    assert not compare(out, made.checkpoint, without, ROWS, jnp.float32).within


def test_the_soft_prompt_beside_merged_weights_belongs_to_those(tmp_path):
    out = write_export(tmp_path, "merged", export(virtual=3), "")
    merged = load_model(out / "model")
    assert read_manifest(out / "soft_prompt").base.fingerprint == merged.fingerprint
    assert read_adapter(out / "soft_prompt", merged).num_virtual_tokens == 3
    with pytest.raises(UserError, match="another base"):
        read_adapter(out / "soft_prompt", checkpoint("llama"))


def test_a_damaged_export_does_not_pass_the_comparison(tmp_path):
    from safetensors.numpy import save_file

    made = export()
    out = write_export(tmp_path, "peft", made, "")
    tensors = load_file(out / "adapter_model.safetensors")
    name = next(name for name in tensors if "lora_B" in name)
    tensors[name] = -tensors[name]
    save_file(tensors, out / "adapter_model.safetensors")
    found = compare(out, made.checkpoint, made.adapter, ROWS, jnp.float32)
    assert not found.within
    assert "BEYOND" in str(found)
    assert not Difference(float("nan"), 1.0, 1e-4, 1.0, 3).within


@pytest.mark.parametrize(
    ("form", "adapter", "said"),
    [
        ("peft", soft_only(), "soft prompt alone"),
        ("merged", soft_only(), "soft prompt alone"),
        ("soft_prompt", random_adapter("llama"), "has none"),
        ("soft_prompt", random_adapter("llama", virtual=3), "leave out the LoRA"),
    ],
)
def test_a_format_that_would_leave_something_out_is_refused(tmp_path, form, adapter, said):
    with pytest.raises(UserError, match=said):
        write_export(tmp_path / "out", form, export(adapter=adapter), "")
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="is there already"):
        write_export(tmp_path, "peft", export(), "")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def lint(tmp_path, family="llama", form="peft", **changes):
    return lint_vllm(write_export(tmp_path, form, export(family, **changes), ""))


def test_vllm_loads_lora_of_its_families_and_merged_weights_of_all(tmp_path):
    good = lint(tmp_path / "llama")
    assert good.loads
    assert "vllm serve some/base --enable-lora" in good.lines[0]
    assert "--max-lora-rank" not in good.lines[0]
    bad = lint(tmp_path / "gpt2", "gpt2")
    assert not bad.loads
    assert "--format=merged" in bad.lines[0]
    assert lint(tmp_path / "merged", "gpt2", "merged").loads


@pytest.mark.parametrize("form", ["peft", "merged"])
def test_the_line_for_vllm_can_be_pasted_wherever_the_folders_are(tmp_path, form):
    made = dataclasses.replace(export(), base_name="/models/my base")
    (line,) = lint_vllm(write_export(tmp_path / "an export", form, made, "")).lines
    words = shlex.split(line.removeprefix("weights: "))
    here = str(tmp_path / "an export")
    told = ["/models/my base", "--enable-lora", "--lora-modules", f"adapter={here}"]
    assert words == ["vllm", "serve", *(told if form == "peft" else [here])]


def test_the_revision_of_the_base_is_told_to_every_loader(tmp_path):
    """Else they would take the newest, which may be another model."""
    made = export(virtual=3, revision="step1000")
    out = write_export(tmp_path / "out", "peft", made, "")
    for part in ("lora", "soft_prompt"):
        said = json.loads((out / part / "adapter_config.json").read_text())
        assert said["revision"] == "step1000"
    assert read_manifest(out).base == made.base
    lines = lint(tmp_path / "lora", revision="step1000").lines
    assert "vllm serve some/base --revision step1000 --enable-lora" in lines[0]


def test_an_export_that_tells_no_revision_is_read(tmp_path):
    out = write_export(tmp_path, "peft", export(), "")
    content = json.loads((out / "pintern.json").read_text())
    del content["base"]["revision"]
    (out / "pintern.json").write_text(json.dumps(content))
    assert read_manifest(out).base == export().base


@pytest.mark.parametrize(
    ("model", "named", "pinned"),
    [
        ({"path": "base"}, "{here}/base", ""),
        ({"path": "org/name", "revision": "step1000"}, "org/name", ', revision="step1000"'),
    ],
)
def test_the_card_finds_the_base_from_anywhere(tmp_path, monkeypatch, model, named, pinned):
    """A folder that was named from the working directory, and the hub's revision."""
    from absl import flags

    from pintern import export as entry

    flags.FLAGS.unparse_flags()
    flags.FLAGS(["export", "--workdir=run", "--out=out", "--format=peft"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    parts = tiny.parts()
    config = parts.config.copy_and_resolve_references()
    config.model.update(model)
    whole = dataclasses.replace(parts.checkpoint, directory=Path("base"))
    parts = dataclasses.replace(parts, config=config, checkpoint=whole)
    adapter = fresh_adapter(parts)
    made = entry._plan(parts, adapter, "peft", "float32")
    card = render_card(entry._facts(parts, made, "peft", tmp_path, 1))
    wanted = json.dumps(named.format(here=tmp_path)) + pinned
    assert f"AutoModelForCausalLM.from_pretrained({wanted})" in card
    assert f"AutoTokenizer.from_pretrained({wanted})" in card


def test_the_card_of_a_chat_asks_by_the_checkpoints_template(tmp_path, monkeypatch):
    """Not by a format that nothing was trained in; what the snippet reads is what was trained."""
    from absl import flags

    from pintern import export as entry

    folder = shutil.copytree(tiny.base(), tmp_path / "base")
    template = "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>{% endfor %}"
    template += "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
    (folder / "chat_template.jinja").write_text(template)
    changes = {"model__path": str(folder), "task__chat": True, "eval__keep_rate": 1.0}
    parts = assemble(tiny.config(**changes))
    flags.FLAGS.unparse_flags()
    flags.FLAGS(["export", "--workdir=run", "--out=out", "--format=peft"])
    made = entry._plan(parts, fresh_adapter(parts), "peft", "float32")
    facts = entry._facts(parts, made, "peft", tmp_path, 1)
    assert entry._details(facts, 0)["prompt"] == {
        "text": tiny.TEMPLATE,
        "shots": 0,
        "query_format": None,
        "chat": True,
        "bos": list(parts.tokenizer.bos),
    }
    card = render_card(facts)
    assert f"eos_token_id=[{parts.tokenizer.eos}], do_sample" in card
    code = card[card.index("query = ") : card.index("made = model.generate")]
    names = {"tokenizer": parts.tokenizer.tokenizer, "prompt": tiny.TEMPLATE}
    code = code.replace('return_tensors="pt"', 'return_tensors="np"')  # torch needn't be here
    exec(compile(code, "card", "exec"), names)
    (row,) = parts.prompts.request_rows(parts.prompts.task.test[:1], 0)
    assert names["ids"].tolist() == [[*parts.prompts.prefix(1.0), *row.tokens]]


@pytest.mark.parametrize("family", ["bloom", "gpt_neox", "something"])
def test_vllm_has_no_lora_for_other_families(tmp_path, family):
    out = write_export(tmp_path, "peft", export(), "")
    path = out / "pintern.json"
    path.write_text(path.read_text().replace('"llama"', json.dumps(family)))
    verdict = lint_vllm(out)
    assert not verdict.loads
    assert "merged" in verdict.lines[0]


def test_vllm_has_no_soft_prompts(tmp_path):
    assert "prompt_embeds" in lint(tmp_path / "both", virtual=3).lines[0]
    alone = lint(tmp_path / "alone", form="soft_prompt", adapter=soft_only())
    assert not alone.loads


@pytest.mark.parametrize(
    ("changes", "loads", "said"),
    [
        ({"r": 17}, True, "--max-lora-rank 32"),
        ({"r": 300}, True, "--max-lora-rank 320"),
        ({"r": 513}, False, "512 at most"),
        ({"use_dora": True}, False, "use_dora"),
        ({"bias": "all"}, False, "bias"),
        ({"modules_to_save": ["lm_head"]}, False, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 4}}, False, "rank_pattern"),
        ({"target_modules": ["q_proj", "wq"]}, False, "modules wq"),
    ],
)
def test_vllm_options(tmp_path, changes, loads, said):
    out = write_export(tmp_path, "peft", export(), "")
    path = out / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    verdict = lint_vllm(out)
    assert verdict.loads == loads
    assert said in verdict.lines[0]


def test_logits_are_compared_at_full_precision_on_any_device(monkeypatch):
    """A GPU's products of 10 bits would be beyond a tolerance that is one of float32."""
    from pintern.interop import compare as comparing

    used, forward = [], comparing._forward

    def told(*args):
        used.append(jax.config.jax_default_matmul_precision)
        return forward(*args)

    monkeypatch.setattr(comparing, "_forward", told)
    comparing.logits_of(checkpoint("llama").decoder, None, ROWS)
    assert used == ["highest"]
