"""PEFT and transformers compute what we trained: each format, against the libraries themselves.

Needs torch, transformers and peft (`make test-peers`). A family is one line of `CONFIGS`.
"""

import functools
import json
import re
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from pintern.adapters.adapter import Adapter, LoraPair  # noqa: E402
from pintern.interop.compare import logits_of  # noqa: E402
from pintern.interop.model_card import Facts, render_card  # noqa: E402
from pintern.interop.modules import hub_modules  # noqa: E402
from pintern.interop.read import read_adapter  # noqa: E402
from pintern.interop.write import Export, parts_of, write_export  # noqa: E402
from pintern.models.families import FAMILIES as KNOWN  # noqa: E402
from pintern.models.load import Checkpoint, load_model  # noqa: E402

TOLERANCE = 1e-4
ROWS = [[5, 17, 3, 88, 41, 2, 9], [60, 1, 1, 32]]
# Odd shapes on purpose: no two widths are the same.
_ROTARY = {
    "vocab_size": 97,
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
_GEMMA = dict(_ROTARY, head_dim=8, tie_word_embeddings=True, sliding_window=5)
CONFIGS = {
    "bloom": {"vocab_size": 97, "hidden_size": 24, "n_layer": 3, "n_head": 6},
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gpt2": {"vocab_size": 97, "n_embd": 24, "n_layer": 3, "n_head": 6, "n_positions": 64},
    "gpt_neox": {k: v for k, v in _ROTARY.items() if k != "num_key_value_heads"},
    "llama": dict(_ROTARY, attention_bias=True, mlp_bias=True),
    "mistral": dict(_ROTARY, sliding_window=5),
    "mixtral": dict(_ROTARY, num_local_experts=4),
    "opt": {
        "vocab_size": 97,
        "hidden_size": 24,
        "ffn_dim": 36,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "max_position_embeddings": 64,
        "word_embed_proj_dim": 24,
    },
    "qwen2": _ROTARY,
    "qwen3": dict(_ROTARY, head_dim=8),
}
FAMILIES = sorted(CONFIGS.keys() & KNOWN.keys())
SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}


@functools.cache
def base(family: str, folder: Path) -> tuple[Path, Checkpoint]:
    """A random model made and saved by transformers, loud enough for uneven attention."""
    torch.manual_seed(3)
    config = transformers.AutoConfig.for_model(family, **CONFIGS[family], **SPECIAL)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "position" not in name:
                weight.mul_(6)
            elif weight.ndim == 1:
                weight.add_(0.1 * torch.randn_like(weight))
    model.save_pretrained(folder / family)
    return folder / family, load_model(folder / family)


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("bases")


def adapter_for(checkpoint: Checkpoint, *, rank: int = 4, virtual: int = 0) -> Adapter:
    """Random LoRA on every module but one, and virtual tokens."""
    rng = np.random.default_rng(11)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(0, 0.2, shape), jnp.float32)

    layers = checkpoint.config.num_layers
    lora = {}
    for name, module in list(hub_modules(checkpoint).items())[1:]:
        a, b = normal(layers, module.width_in, rank), normal(layers, rank, module.width_out)
        lora[name] = LoraPair(a, b)
    soft_prompt = normal(virtual, checkpoint.config.model_dim) if virtual else None
    return Adapter(lora, soft_prompt, scale=6.0 / rank)


def test_no_family_is_left_out():
    assert set(FAMILIES) == set(KNOWN)


def export(path: Path, checkpoint: Checkpoint, adapter: Adapter) -> Export:
    return Export(adapter, checkpoint, str(path), alpha=6.0, rank_stabilised=False)


def load(path: Path):
    return transformers.AutoModelForCausalLM.from_pretrained(path).eval()


def torch_logits(model, virtual: int = 0) -> np.ndarray:
    """Row by row, without padding; the positions of virtual tokens left out."""
    with torch.no_grad():
        rows = [model(input_ids=torch.tensor([row])).logits[0, virtual:] for row in ROWS]
    return torch.cat(rows).numpy()


def assert_agree(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.std() > 0.1
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE * max(1, np.abs(ours).max()), rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_loads_our_lora(tmp_path, folder, family):
    path, checkpoint = base(family, folder)
    adapter = adapter_for(checkpoint)
    out = write_export(tmp_path / "out", "peft", export(path, checkpoint, adapter), "")
    model = peft.PeftModel.from_pretrained(load(path), out)
    adapted = {name for name, m in model.named_modules() if hasattr(m, "lora_A")}
    assert len(adapted) == checkpoint.config.num_layers * len(adapter.lora)
    ours = logits_of(checkpoint.decoder, adapter, ROWS)
    assert_agree(ours, torch_logits(model))
    assert np.abs(ours - logits_of(checkpoint.decoder, None, ROWS)).max() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_our_soft_prompt_is_pefts(tmp_path, folder, family):
    path, checkpoint = base(family, folder)
    adapter = adapter_for(checkpoint, virtual=5).replace(lora={}, scale=1.0)
    out = write_export(tmp_path / "out", "soft_prompt", export(path, checkpoint, adapter), "")
    model = peft.PeftModel.from_pretrained(load(path), out)
    # PEFT returns logits of the virtual tokens too, in front.
    assert_agree(logits_of(checkpoint.decoder, adapter, ROWS), torch_logits(model, virtual=5))


@pytest.mark.parametrize("virtual", [0, 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_merged_weights_load_in_transformers(tmp_path, folder, family, virtual):
    path, checkpoint = base(family, folder)
    adapter = adapter_for(checkpoint, virtual=virtual)
    made = export(path, checkpoint, adapter)
    out = write_export(tmp_path / "out", "merged", made, "")
    model = load(out / "model" if virtual else out)
    if virtual:
        model = peft.PeftModel.from_pretrained(model, out / "soft_prompt")
    assert_agree(logits_of(checkpoint.decoder, adapter, ROWS), torch_logits(model, virtual))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_hybrid_loads_as_its_card_says(tmp_path, folder, family):
    path, checkpoint = base(family, folder)
    adapter = adapter_for(checkpoint, virtual=5)
    out = write_export(tmp_path / "out", "peft", export(path, checkpoint, adapter), "")
    merged = peft.PeftModel.from_pretrained(load(path), out / "lora").merge_and_unload()
    model = peft.PeftModel.from_pretrained(merged, out / "soft_prompt")
    assert_agree(logits_of(checkpoint.decoder, adapter, ROWS), torch_logits(model, virtual=5))


def train_with_peft(path: Path, config, out: Path):
    """A few real optimizer steps; returns the model, saved to `out`."""
    torch.manual_seed(5)
    model = peft.get_peft_model(load(path), config)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.05)
    row = torch.tensor([ROWS[0]])
    losses = []
    for _ in range(4):
        loss = model(input_ids=row, labels=row).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.eval().save_pretrained(out)
    return model


@pytest.mark.parametrize("stabilised", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_that_peft_trained_imports(tmp_path, folder, family, stabilised):
    path, checkpoint = base(family, folder)
    # PEFT's all-linear takes in the experts, whose LoRA has no place here.
    targets = ["q_proj", "o_proj"] if family == "mixtral" else "all-linear"
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=3,
        lora_alpha=7,
        target_modules=targets,
        use_rslora=stabilised,
        fan_in_fan_out=family == "gpt2",
    )
    model = train_with_peft(path, config, tmp_path / "trained")
    adapter = read_adapter(tmp_path / "trained", checkpoint)
    assert adapter.scale == pytest.approx(7 / (3**0.5 if stabilised else 3))
    ours = logits_of(checkpoint.decoder, adapter, ROWS)
    assert_agree(ours, torch_logits(model))
    assert np.abs(ours - logits_of(checkpoint.decoder, None, ROWS)).max() > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_a_soft_prompt_that_peft_trained_imports(tmp_path, folder, family):
    path, checkpoint = base(family, folder)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = train_with_peft(path, config, tmp_path / "trained")
    adapter = read_adapter(tmp_path / "trained", checkpoint)
    assert_agree(logits_of(checkpoint.decoder, adapter, ROWS), torch_logits(model, virtual=4))


# What turns LoRA into something else, as PEFT itself writes it down.
VARIANTS = {
    "use_dora": {"use_dora": True},
    "bias": {"bias": "lora_only"},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "rank_pattern": {"rank_pattern": {"q_proj": 2}},
    "alpha_pattern": {"alpha_pattern": {"q_proj": 2}},
    "layers_to_transform": {"layers_to_transform": [0]},
    "init_lora_weights": {"init_lora_weights": "pissa"},
}


@pytest.mark.parametrize("option", VARIANTS)
def test_what_is_more_than_lora_is_refused_as_peft_writes_it(tmp_path, folder, option):
    from pintern.errors import UserError

    path, checkpoint = base("llama", folder)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], **VARIANTS[option]
    )
    peft.get_peft_model(load(path), config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=rf"{option} is .*more than plain LoRA"):
        read_adapter(tmp_path, checkpoint)


def tokenizer(path: Path) -> None:
    """Words `w0` to `w96`, so that a card's snippet can run."""
    import tokenizers

    vocabulary = {f"w{i}": i for i in range(97)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w2"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.decoder = tokenizers.decoders.Fuse()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="w0", eos_token="w1"
    ).save_pretrained(path)


@pytest.mark.parametrize(
    ("form", "virtual"),
    [("peft", 0), ("merged", 0), ("soft_prompt", 5), ("peft", 5), ("merged", 5)],
)
def test_the_snippet_of_a_card_runs(tmp_path, folder, monkeypatch, capsys, form, virtual):
    """It prints what greedy decoding here gives."""
    path, checkpoint = base("llama", folder)
    tokenizer(path)
    adapter = adapter_for(checkpoint, virtual=virtual)
    if form == "soft_prompt":
        adapter = adapter.replace(lora={}, scale=1.0)
    made = export(path, checkpoint, adapter)
    facts = Facts(
        name="run",
        task="task",
        base=made.base,
        parts=parts_of(form, adapter),
        trained="",
        step=1,
        template="w9 ``` w8",
        prompt="w9 w8",
        shots=0,
        query_format="w7 {query}",
        example="w5 w4",
        bos=(0,),
        max_new_tokens=3,
        tokens_before=9,
        tokens_after=6,
        scores=(),
        measured=None,
    )
    made.details["prompt"] = {"text": facts.prompt}
    out = write_export(tmp_path / "out", form, made, render_card(facts))
    code = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.S).group(1)
    monkeypatch.chdir(out)
    exec(compile(code, "card", "exec"), {})
    ids = [0, 9, 8, 7, 5, 4]
    for _ in range(3):
        ids.append(int(logits_of(checkpoint.decoder, adapter, [ids])[-1].argmax()))
    printed = capsys.readouterr().out.strip()
    wanted = "".join(f"w{i}" for i in ids[6:] if i > 1)
    assert printed.replace(" ", "") == wanted
    assert json.loads((out / "pintern.json").read_text())["base"]["name"] == str(path)
