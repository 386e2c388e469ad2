"""Compressors: the asked rate is hit, words stay whole, the informative ones stay longest."""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from prompt_samples import TEMPLATE, TOKENIZERS, tiny_tokenizer, unigram_bits
from tiny_models import VOCAB, random_decoder

from pintern.config.checks import CHOICES
from pintern.errors import UserError
from pintern.models.surprisal import surprisal_of
from pintern.prompts.compressors.make import COMPRESSORS, make_compressor
from pintern.prompts.compressors.rates import TOLERANCE, keep_rate_of
from pintern.prompts.compressors.self_information import SelfInformationCompressor
from pintern.prompts.compressors.truncation import TruncationCompressor
from pintern.prompts.compressors.words import Words

RATES = tuple(round(0.1 * step, 1) for step in range(1, 10))
MAKERS = {
    "self-information": lambda tokenizer: SelfInformationCompressor(tokenizer, unigram_bits),
    "truncation": TruncationCompressor,
}
every_maker = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    made = TOKENIZERS[request.param]()
    if made is None:
        pytest.skip("needs ../shared")
    return made


def is_subsequence(few, many):
    rest = iter(many)
    return all(word in rest for word in few)


@every_maker
def test_rate_is_hit_within_two_points(make, tokenizer):
    compress = make(tokenizer)
    assert len(TEMPLATE.split()) > 300
    for rate in RATES:
        got = keep_rate_of(tokenizer, compress(TEMPLATE, rate), TEMPLATE)
        assert abs(got - rate) <= TOLERANCE


def test_rate_is_hit_on_every_passage_of_forty_words(tokenizer):
    words = TEMPLATE.split()
    compress = SelfInformationCompressor(tokenizer, unigram_bits)
    for start in range(0, len(words) - 40, 40):
        passage = " ".join(words[start : start + 40])
        for rate in RATES:
            got = keep_rate_of(tokenizer, compress(passage, rate), passage)
            assert abs(got - rate) <= TOLERANCE + 1e-9


@every_maker
def test_words_stay_whole_in_order_and_nested(make, tokenizer):
    compress = make(tokenizer)
    fuller = TEMPLATE.split()
    for rate in reversed(RATES):
        kept = compress(TEMPLATE, rate).split()
        assert is_subsequence(kept, fuller)
        assert len(kept) < len(fuller)
        fuller = kept


@every_maker
def test_lines_stay_apart_and_none_is_empty(make):
    compress = make(tiny_tokenizer())
    line_of = {line: set(line.split()) for line in TEMPLATE.splitlines()}
    for rate in RATES:
        text = compress(TEMPLATE, rate)
        assert text.endswith("\n")
        assert not re.search(r"\n[ \t]*\n[ \t]*\n", text)
        for line in filter(None, map(str.split, text.splitlines())):
            assert any(set(line) <= words for words in line_of.values())


def test_a_kept_line_keeps_its_indentation():
    words = Words.of("tables:\n    orders one\n  customers two\n")
    assert words.keep([0, 3]) == "tables:\n  customers\n"
    assert words.keep([0, 1]) == "tables:\n    orders\n"


@every_maker
def test_ends_of_the_scale(make):
    compress = make(tiny_tokenizer())
    assert compress(TEMPLATE, 1.0) == TEMPLATE
    assert compress(TEMPLATE, 0.0) == ""
    for rate in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match=f"Keep rate {rate} is outside"):
            compress(TEMPLATE, rate)


@every_maker
def test_above_rate_0_something_is_kept(make):
    """An empty text would be no rung: the ladder that holds it can't be read again."""
    short = make(tiny_tokenizer())
    for rate in (0.01, 0.02):
        with pytest.raises(UserError, match=f"keep {rate:.2f}.*too short"):
            short("orders customers", rate)


@every_maker
def test_too_short_a_template_is_refused(make):
    with pytest.raises(UserError, match=r"keep 0\.30 ± 0\.02.*keeps [01]\.\d+.*too short"):
        make(tiny_tokenizer())("orders customers", 0.3)
    with pytest.raises(UserError, match="too short"):
        make(tiny_tokenizer())(" \n ", 0.5)


@pytest.mark.parametrize("rate", RATES)
def test_truncation_keeps_the_head_and_no_other_head_is_nearer(rate, tokenizer):
    """A control spends the same budget as what it is compared with."""
    text = TruncationCompressor(tokenizer)(TEMPLATE, rate)
    assert TEMPLATE.startswith(text.rstrip("\n"))
    kept = len(text.split())
    heads = [
        "".join(re.findall(r"\s*\S+", TEMPLATE)[:count]) + "\n"
        for count in range(max(1, kept - 3), kept + 4)
    ]
    distances = [abs(keep_rate_of(tokenizer, head, TEMPLATE) - rate) for head in heads]
    assert abs(keep_rate_of(tokenizer, text, TEMPLATE) - rate) == min(distances)


def test_compressors_at_one_rate_spend_alike(tokenizer):
    for rate in RATES:
        spent = [
            keep_rate_of(tokenizer, make(tokenizer)(TEMPLATE, rate), TEMPLATE)
            for make in MAKERS.values()
        ]
        assert abs(spent[0] - spent[1]) <= 0.01


def test_least_informative_words_go_first():
    tokenizer = tiny_tokenizer()
    text = " ".join(f"{'dull' if i % 2 else 'rare'}{i % 10}" for i in range(100))
    _, spans = tokenizer.offsets(text)
    word_starts = [text.rfind(" ", 0, end) + 1 for _, end in spans]
    bits = np.array([1.0 if text[start] == "d" else 8.0 for start in word_starts])
    compress = SelfInformationCompressor(tokenizer, lambda _: bits)
    less, more = (compress(text, rate).split() for rate in (0.3, 0.7))
    assert all(word.startswith("rare") for word in less)
    assert sum(word.startswith("rare") for word in more) == 50


def test_information_is_a_mean_so_that_long_words_are_not_favoured():
    tokenizer = tiny_tokenizer()
    short, long = "the", "qzxjvkwqzxjvkw"
    text = " ".join([short, long] * 40)
    assert len(tokenizer.encode(f" {long}")) > 3 * len(tokenizer.encode(f" {short}"))
    _, spans = tokenizer.offsets(text)
    of_short = np.array([text[b - 1] in short for _, b in spans])
    compress = SelfInformationCompressor(tokenizer, lambda _: np.where(of_short, 3.0, 1.0))
    rate = len(tokenizer.encode(" ".join([short] * 40))) / len(spans)
    assert set(compress(text, rate).split()) == {short}


@pytest.mark.parametrize("bos", [(), (1,)])
def test_surprisal_is_the_models_own(bos, monkeypatch):
    """Against one pass over the whole text; its logits are made a few positions at a time."""
    monkeypatch.setattr("pintern.models.surprisal._AT_ONCE", 5)
    decoder = random_decoder("gpt2")
    ids = np.random.default_rng(0).integers(2, VOCAB, 23).tolist()
    tokens = jnp.array([*bos, *ids])
    hidden, _ = decoder(tokens[None, None], jnp.arange(len(tokens))[None, None])
    log_probs = jax.nn.log_softmax(decoder.logits(hidden[0, 0, :-1]))
    wanted = -log_probs[jnp.arange(len(tokens) - 1), tokens[1:]] / np.log(2)
    first = [] if bos else [np.log2(VOCAB)]
    found = surprisal_of(decoder, bos)(ids)
    np.testing.assert_allclose(found, [*first, *wanted], rtol=1e-4)
    np.testing.assert_allclose(surprisal_of(decoder, ())(ids[:1]), [np.log2(VOCAB)])


def test_surprisal_is_asked_once_per_text():
    asked = []

    def bits(ids):
        asked.append(len(ids))
        return unigram_bits(ids)

    compress = SelfInformationCompressor(tiny_tokenizer(), bits)
    for rate in RATES:
        compress(TEMPLATE, rate)
    assert asked == [len(tiny_tokenizer().encode(TEMPLATE))]


def test_long_word_across_the_rate_is_passed_over():
    tokenizer = tiny_tokenizer()
    blob = "qzxj" * 40
    text = f"{blob} " + " ".join(["order"] * 80)

    def bits(ids):
        return np.linspace(9.0, 1.0, len(ids))  # the blob is the most informative

    full = len(tokenizer.encode(text))
    rate = 0.5 * len(tokenizer.encode(" order" * 80)) / full
    assert len(tokenizer.encode(blob)) > 2 * rate * full
    kept = SelfInformationCompressor(tokenizer, bits)(text, rate)
    assert set(kept.split()) == {"order"}
    assert abs(keep_rate_of(tokenizer, kept, text) - rate) <= TOLERANCE
    with pytest.raises(UserError, match="too short"):
        TruncationCompressor(tokenizer)(text, rate)


def test_broken_surprisal_is_refused():
    def not_finite(ids):
        return np.where(np.arange(len(ids)) == 5, np.nan, 1.0)

    with pytest.raises(UserError, match="token 5 of the template is not finite"):
        SelfInformationCompressor(tiny_tokenizer(), not_finite)(TEMPLATE, 0.5)
    with pytest.raises(ValueError, match="surprisal has shape"):
        SelfInformationCompressor(tiny_tokenizer(), lambda ids: np.ones(len(ids) - 1))(
            TEMPLATE, 0.5
        )


def test_keep_rate_of():
    tokenizer = tiny_tokenizer()
    assert keep_rate_of(tokenizer, TEMPLATE, TEMPLATE) == 1
    assert keep_rate_of(tokenizer, "", TEMPLATE) == 0
    with pytest.raises(UserError, match="no tokens"):
        keep_rate_of(tokenizer, "a", "")


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "llmlingua", None)
    with pytest.raises(UserError, match=r"'llmlingua2'.*pip install 'pintern\[llmlingua\]'"):
        make_compressor(
            "llmlingua2", tiny_tokenizer(), surprisal=unigram_bits, llmlingua_model="any"
        )


def test_every_kind_of_the_config_is_made_and_no_other():
    assert set(CHOICES["prompt.compressor"]) == set(COMPRESSORS)
    with pytest.raises(UserError, match=r"'gzip'.*self_information, llmlingua2, truncation"):
        make_compressor("gzip", tiny_tokenizer(), surprisal=unigram_bits, llmlingua_model="")
    made = make_compressor(
        "truncation", tiny_tokenizer(), surprisal=unigram_bits, llmlingua_model=""
    )
    assert made(TEMPLATE, 0.4) == TruncationCompressor(tiny_tokenizer())(TEMPLATE, 0.4)
