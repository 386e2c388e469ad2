"""Start and end tokens by family, and text that arrives token by token."""

import functools

import pytest
import small_tokenizers
from prompt_samples import gpt2_tokenizer, llama_tokenizer

from pintern.errors import UserError
from pintern.prompts.tokens import TextStream

GPT2 = functools.partial(small_tokenizers.byte_level, bos="<|end|>", eos="<|end|>")
OTHER = functools.partial(small_tokenizers.byte_level, bos="<s>", eos="</s>")
BOS_RULES = {
    "gpt2: its BOS is its EOS": (lambda: GPT2("gpt2", family="gpt2"), False),
    "opt: BOS is EOS, and every sequence starts with it": (
        lambda: GPT2("opt", family="opt", adds_bos=True),
        True,
    ),
    "bloom: a BOS that no sequence starts with": (lambda: OTHER("bloom", family="bloom"), False),
    "llama, by its post-processor": (lambda: small_tokenizers.llama_like("llama"), True),
    "llama, converted without one": (
        lambda: small_tokenizers.llama_like("bare", adds_bos=False),
        True,
    ),
    "told in tokenizer_config.json": (
        lambda: OTHER("asked", family="qwen2", add_bos_token=True),
        True,
    ),
    "told not to": (lambda: OTHER("told-not", family="gemma", add_bos_token=False), False),
    "no model yet": (lambda: OTHER("alone"), True),
    "none": (
        lambda: small_tokenizers.byte_level("none", bos=None, eos="</s>", family="qwen2"),
        False,
    ),
}


@pytest.mark.parametrize("case", BOS_RULES)
def test_whether_sequences_start_with_bos(case):
    make, starts = BOS_RULES[case]
    found = small_tokenizers.load(make())
    assert found.bos == ((found.tokenizer.bos_token_id,) if starts else ())


def test_the_bos_of_a_converted_llama_is_the_one_of_its_original():
    with_it, without = (
        small_tokenizers.load(small_tokenizers.llama_like(name, adds_bos=adds))
        for name, adds in (("llama", True), ("bare", False))
    )
    text = "Where is the red bolt?"
    ids = with_it.tokenizer(text)["input_ids"]
    assert [*with_it.bos, *with_it.encode(text)] == ids
    assert [*without.bos, *without.encode(text)] == ids


def test_further_ends_come_from_the_generation_config():
    folder = small_tokenizers.byte_level("ends", bos="<s>", eos="</s>", ends=(1, 3, 2))
    found = small_tokenizers.load(folder)
    assert (found.eos, found.also_end) == (1, (2, 3))
    turned = found.ending_with(3)
    assert (turned.eos, turned.also_end) == (3, (1, 2))
    for told, further in (("2", (2,)), ("1", ()), ("null", ())):
        (folder / "generation_config.json").write_text(f'{{"eos_token_id": {told}}}')
        assert small_tokenizers.load(folder).also_end == further
    (folder / "generation_config.json").write_text("{,")
    with pytest.raises(UserError, match=r"generation_config\.json holds no JSON object"):
        small_tokenizers.load(folder)


TOKENIZERS = {
    "GPT-2's own": gpt2_tokenizer,
    "stories260K": llama_tokenizer,
    "byte level": lambda: small_tokenizers.load(GPT2("gpt2", family="gpt2")),
    "llama-like": lambda: small_tokenizers.load(small_tokenizers.llama_like("llama")),
}
TEXTS = [
    " Once upon a time",
    "naïve – 10 € für 日本語 and 👩‍👩‍👧 too\n",
    "  two\n\n  lines \n",
    "ends broken \ufffd",
    "",
]


@pytest.mark.parametrize("strip", [False, True])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_streamed_pieces_add_up_to_the_text(name, strip):
    tokenizer = TOKENIZERS[name]()
    if tokenizer is None:
        pytest.skip("../shared with this tokenizer is absent")
    for text in TEXTS:
        ids = tokenizer.encode(text)
        stream = TextStream(tokenizer, strip=strip)
        pieces = [stream.push(token) for token in ids]
        whole = tokenizer.decode(ids)
        assert "".join([*pieces, stream.end()]) == (whole.strip() if strip else whole)
        if "broken" not in text:
            assert "\ufffd" not in "".join(pieces)
        if len(ids) > 3:
            assert sum(map(bool, pieces)) > 1  # it does come in pieces
