"""LLMLingua-2 by the package itself, on tiny random token classifiers made here."""

import re
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("llmlingua", reason="needs pip install 'pintern[llmlingua]'")
sys.path.insert(0, str(Path(__file__).parents[1]))

import tokenizers  # noqa: E402
import transformers  # noqa: E402
from prompt_samples import TEMPLATE, TOKENIZERS, tiny_tokenizer  # noqa: E402
from tokenizers import decoders, models, pre_tokenizers, trainers  # noqa: E402

from pintern.assemble import assemble  # noqa: E402
from pintern.config import default_config, validate  # noqa: E402
from pintern.errors import UserError  # noqa: E402
from pintern.prompts.compressors.llmlingua import LLMLingua2Compressor  # noqa: E402
from pintern.prompts.compressors.rates import TOLERANCE, keep_rate_of  # noqa: E402
from pintern.prompts.ladder import build_ladder  # noqa: E402

RATES = (0.9, 0.75, 2 / 3, 0.5, 1 / 3, 0.25, 0.1)
_SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "num_labels": 2,
    "initializer_range": 0.5,
}


def xlm_roberta(folder):
    """A classifier of the larger published one's architecture, with a tokenizer of its kind."""
    made = tokenizers.Tokenizer(models.Unigram())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = {
        "bos_token": "<s>",
        "cls_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    trainer = trainers.UnigramTrainer(
        vocab_size=400,
        special_tokens=list(dict.fromkeys(special.values())),
        unk_token="<unk>",
        show_progress=False,
    )
    made.train_from_iterator([TEMPLATE], trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special)
    config = transformers.XLMRobertaConfig(
        vocab_size=len(fast), max_position_embeddings=516, pad_token_id=1, **_SHAPE
    )
    return save(folder, fast, transformers.XLMRobertaForTokenClassification, config)


def bert(folder):
    """A classifier of the smaller published one's architecture."""
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    special = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    trainer = trainers.WordPieceTrainer(
        vocab_size=500, special_tokens=list(special.values()), show_progress=False
    )
    made.train_from_iterator([TEMPLATE], trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special)
    config = transformers.BertConfig(vocab_size=len(fast), **_SHAPE)
    return save(folder, fast, transformers.BertForTokenClassification, config)


def save(folder, tokenizer, kind, config):
    torch.manual_seed(0)
    kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=[xlm_roberta, bert], ids=lambda made: made.__name__)
def classifier(request, tmp_path_factory):
    # The folder's name says nothing of the architecture.
    return request.param(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def compress(classifier):
    return LLMLingua2Compressor(tiny_tokenizer(), classifier)


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    made = TOKENIZERS[request.param]()
    if made is None:
        pytest.skip("needs ../shared")
    return made


def test_rate_is_hit_within_two_points_of_any_tokenizer(classifier, tokenizer):
    compress = LLMLingua2Compressor(tokenizer, classifier)
    for rate in RATES:
        got = keep_rate_of(tokenizer, compress(TEMPLATE, rate), TEMPLATE)
        assert abs(got - rate) <= TOLERANCE
    ladder = build_ladder(TEMPLATE, (1.0, *RATES, 0.0), compress, tokenizer)
    assert [rung.asked for rung in ladder.values()] == [1.0, *RATES, 0.0]


def test_what_is_kept_stands_in_the_template_in_its_order(compress):
    everything = re.findall(r"\w|[^\w\s]", TEMPLATE)
    for rate in RATES:
        text = compress(TEMPLATE, rate)
        rest = iter(everything)
        assert all(sign in rest for sign in re.findall(r"\w|[^\w\s]", text))
        assert text.endswith("\n") and not text.endswith("\n\n")


def test_lines_stay_apart(compress):
    assert compress(TEMPLATE, 0.75).count("\n") > 0.8 * TEMPLATE.count("\n")


def test_the_classifier_decides(compress, monkeypatch):
    """With its head turned round it keeps other words, and a copy of it keeps the same."""
    package = compress._package
    assert compress(TEMPLATE, 0.5) == compress(TEMPLATE, 0.5)
    before = compress(TEMPLATE, 0.5)
    forward = package.model

    def turned(**inputs):
        answer = forward(**inputs)
        return type(answer)(logits=answer.logits.flip(-1))

    monkeypatch.setattr(package, "model", turned)
    after = max(compress._candidates_uncached(TEMPLATE), key=len)
    assert after not in compress._candidates(TEMPLATE)
    assert before in compress._candidates(TEMPLATE)


def test_ends_of_the_scale(compress):
    assert compress(TEMPLATE, 1.0) == TEMPLATE
    assert compress(TEMPLATE, 0.0) == ""
    with pytest.raises(UserError, match=r"Keep rate 1\.1 is outside"):
        compress(TEMPLATE, 1.1)
    for text in ("orders customers", " \n "):
        with pytest.raises(UserError, match=r"keeps 0\.30 ± 0\.02 of the template; the nearest"):
            compress(text, 0.3)


def test_models_that_are_no_such_classifier_are_named(tmp_path):
    with pytest.raises(UserError, match=r"llmlingua_model=.*absent can't be loaded"):
        LLMLingua2Compressor(tiny_tokenizer(), str(tmp_path / "absent"))
    transformers.LlamaConfig(architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"is a LlamaForCausalLM\. Expected a token classifier"):
        LLMLingua2Compressor(tiny_tokenizer(), str(tmp_path))


def test_a_run_reaches_it_by_config(classifier):
    config = default_config()
    config.prompt.compressor = "llmlingua2"
    config.prompt.llmlingua_model = classifier
    config.curriculum.stages = 8
    levels = assemble(validate(config)).prompts.levels()
    assert len(levels) == 8
    assert all(abs(level.got - level.asked) <= TOLERANCE for level in levels)
