"""Pieces of a chat template give the ids of `apply_chat_template` on the whole conversation."""

import dataclasses
import datetime

import pytest
import small_tokenizers
from prompt_samples import TEMPLATE, llama_tokenizer

from pintern.errors import UserError
from pintern.prompts.chat import ChatLayout, conversation_ids
from pintern.prompts.rows import Renderer
from pintern.prompts.task import Example, PromptFormat, Task

EXAMPLES = (
    Example("How many orders?", "SELECT COUNT(*) FROM ord_7", "a"),
    Example("Where is the red bolt?\nAnd the blue one?", "shelf 4\nshelf 5", "b"),
    Example("Ångström – 10 €?", "'é'", "c"),
)


def chatml(name="chatml", template=small_tokenizers.CHATML):
    folder = small_tokenizers.byte_level(
        name, bos=None, eos="<|end|>", template=template, family="qwen2"
    )
    return small_tokenizers.load(folder)


def headers(name="headers", template=small_tokenizers.HEADERS):
    folder = small_tokenizers.byte_level(
        name,
        bos="<s>",
        eos="</s>",
        template=template,
        family="llama",
        adds_bos=True,
    )
    return small_tokenizers.load(folder)


def sentencepiece():
    template = small_tokenizers.CHATML
    return small_tokenizers.load(small_tokenizers.llama_like("chat", template=template))


KINDS = {
    "ChatML": (chatml, "<|im_end|>"),
    "ChatML with a default system turn": (
        lambda: chatml("default", small_tokenizers.WITH_DEFAULT),
        "<|im_end|>",
    ),
    "Llama 3's headers": (headers, "<|eot_id|>"),
    "Llama 3.2's day": (lambda: headers("dated", small_tokenizers.DATED), "<|eot_id|>"),
    "ChatML on SentencePiece": (sentencepiece, "<|im_end|>"),
}


def task(**changes):
    made = Task("orders", TEMPLATE, PromptFormat(), EXAMPLES, EXAMPLES, chat=True)
    return dataclasses.replace(made, **changes)


@pytest.fixture(params=KINDS)
def renderer(request):
    make, _ = KINDS[request.param]
    return Renderer.create(make(), task())


def conversation(system, shots, query):
    turns = [("system", system)] if system else []
    for shot in shots:
        turns += [("user", shot.query), ("assistant", shot.completion)]
    return [*turns, ("user", query.query)]


@pytest.mark.parametrize("system", [TEMPLATE, "Short.", ""])
@pytest.mark.parametrize("shots", [(), (0,), (0, 1)])
def test_served_ids_are_those_of_the_whole_conversation(renderer, system, shots):
    shown = [EXAMPLES[i] for i in shots]
    asked, *pieces = renderer.pieces([EXAMPLES[2], *shown])
    row = renderer.row(asked, pieces[::-1], complete=False)
    whole = conversation_ids(renderer.tokenizer, conversation(system, shown, EXAMPLES[2]))
    assert [*renderer.prefix(system), *row.tokens] == whole


def test_trained_ids_are_the_head_of_the_answered_conversation(renderer):
    for example in EXAMPLES:
        (piece,) = renderer.pieces([example])
        trained, served = renderer.row(piece), renderer.row(piece, complete=False)
        assert served.tokens == trained.tokens[: trained.start]
        turns = [*conversation("Short.", (), example), ("assistant", example.completion)]
        whole = conversation_ids(renderer.tokenizer, turns, ask=False)
        mine = [*renderer.prefix("Short."), *trained.tokens]
        assert mine == whole[: len(mine)]
        assert len(whole) - len(mine) <= 2  # at most a line end behind the closing token


def test_an_answer_ends_with_the_turn(renderer, request):
    kind = request.node.callspec.params["renderer"]
    end = renderer.tokenizer.tokenizer.convert_tokens_to_ids(KINDS[kind][1])
    assert renderer.eos == end != renderer.tokenizer.eos
    (piece,) = renderer.pieces(EXAMPLES[:1])
    assert renderer.row(piece).tokens[-1] == end
    assert end not in piece.completion
    assert renderer.example_end[0] == end


def test_contents_are_treated_as_the_template_treats_them():
    """Llama 3's template trims them; ChatML doesn't."""
    spaced = Example(" How many? \n", " 7 \n", "a")
    for make in (headers, chatml):
        made = Renderer.create(make(), task())
        asked, shot = made.pieces([EXAMPLES[0], spaced])
        row = made.row(asked, [shot], complete=False)
        turns = conversation("Short.", [spaced], EXAMPLES[0])
        assert [*made.prefix("Short."), *row.tokens] == conversation_ids(made.tokenizer, turns)


def test_ids_are_the_same_every_day(monkeypatch):
    """A run may be resumed or scored on another day, and midnight may come while it reads."""

    class Clock(datetime.datetime):
        today = 1

        @classmethod
        def now(cls):
            return cls(2026, 11, cls.today)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)
    made = ChatLayout.of(headers("dated", small_tokenizers.DATED))
    before = made.head("Short."), made.query("How many?")
    Clock.today = 2
    assert (made.head("Short."), made.query("How many?")) == before


def test_an_answer_that_merges_with_what_stands_before_it_is_told():
    with pytest.raises(UserError, match=r"'\\n\\nno' merges with the text that asks for it"):
        ChatLayout.of(_merging_newlines()).answer("\n\nno")


def _merging_newlines():
    """ChatML's tokenizer, in which two line ends are one token."""
    made = chatml("merging")
    made.tokenizer.add_tokens(["\n\n"])
    return made


REFUSED = {
    "none": (None, r"has no chat template.*or --chat of pintern\.generate"),
    "system inside the user's turn": (small_tokenizers.INSIDE, r"no special token that opens"),
    "no system role": (small_tokenizers.NO_SYSTEM, r"takes no conversation of system.*No system"),
    "turns left out": (small_tokenizers.LAST_TURN_ONLY, r"leaves out or repeats"),
    "roles in plain text": (small_tokenizers.PLAIN_ROLES, r"no special token that opens"),
    "another generation prompt": (small_tokenizers.THINKING, r"asks by .*think.*but writes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_template_that_cant_be_cut_is_told(case):
    template, said = REFUSED[case]
    tokenizer = chatml(f"refused-{case.split()[0]}-{len(case)}", template)
    with pytest.raises(UserError, match=said) as caught:
        Renderer.create(tokenizer, task())
    assert "config.task.chat=False" in str(caught.value)
    Renderer.create(tokenizer, task(chat=False))


def test_pieces_that_differ_from_the_whole_conversation_are_told():
    """A template may cut well and still write the same words otherwise in another place."""
    template = small_tokenizers.CHATML.replace(
        "m.content", "(m.content | trim if loop.last else m.content)"
    )
    tokenizer = chatml("last-trimmed", template)
    Renderer.create(tokenizer, task())
    spaced = (dataclasses.replace(EXAMPLES[0], query="  How many?"), *EXAMPLES[1:])
    with pytest.raises(UserError, match=r"ids differ .* at token \d+, near .*How many"):
        Renderer.create(tokenizer, task(train=spaced))


def test_a_real_checkpoint_without_a_template_is_told():
    stories = llama_tokenizer()
    if stories is None:
        pytest.skip("../shared/models/stories260K is absent")
    with pytest.raises(UserError, match=r"no chat template.*config\.task\.chat, or --chat"):
        Renderer.create(stories, task())
