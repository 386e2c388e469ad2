"""The ids that a model is trained on are the ids that it is served."""

import dataclasses

import pytest
from prompt_samples import TEMPLATE, TOKENIZERS

from pintern.prompts.rows import Renderer
from pintern.prompts.task import Example, PromptFormat, Task

EXAMPLES = [
    Example("How many orders?", "SELECT COUNT(*) FROM ord_7", "a"),
    Example(" leading and trailing spaces ", "x", "b"),
    Example("Ångström – 10 €?\nSecond line", "SELECT 'é'", "c"),
    Example("", "SELECT 1", "d"),
]


@pytest.fixture(params=list(TOKENIZERS))
def renderer(request):
    tokenizer = TOKENIZERS[request.param]()
    if tokenizer is None:
        pytest.skip("../shared with this tokenizer is absent")
    task = Task("orders", TEMPLATE, PromptFormat(), tuple(EXAMPLES), tuple(EXAMPLES))
    return Renderer.create(tokenizer, task)


@pytest.mark.parametrize("shots", range(4))
def test_serving_ids_are_the_head_of_training_ids(renderer, shots):
    pieces = renderer.pieces(EXAMPLES)
    for i, piece in enumerate(pieces):
        others = [*pieces[:i], *pieces[i + 1 :]][:shots]
        trained = renderer.row(piece, others)
        served = renderer.row(piece, others, complete=False)
        assert served.tokens == trained.tokens[: trained.start]
        assert served.start == trained.start == len(served.tokens)
        assert trained.tokens[trained.start :] == [*piece.completion, renderer.tokenizer.eos]


def test_a_test_query_without_its_answer_has_the_same_ids(renderer):
    asked = [dataclasses.replace(example, completion="") for example in EXAMPLES]
    for known, unknown in zip(renderer.pieces(EXAMPLES), renderer.pieces(asked), strict=True):
        assert unknown.query == known.query
        assert unknown.completion == []


def test_query_ids_depend_neither_on_template_nor_on_shots(renderer):
    pieces = renderer.pieces(EXAMPLES)
    longer = Renderer.create(
        renderer.tokenizer, dataclasses.replace(renderer.task, template=TEMPLATE * 2)
    )
    assert longer.pieces(EXAMPLES) == pieces
    alone = renderer.row(pieces[0]).tokens
    for shots in range(1, 4):
        assert renderer.row(pieces[0], pieces[1 : 1 + shots]).tokens[-len(alone) :] == alone


def test_the_most_similar_shot_stands_next_to_the_query(renderer):
    query, best, second, _ = renderer.pieces(EXAMPLES)
    end = renderer.example_end
    expected = [*second.query, *second.completion, *end, *best.query, *best.completion, *end]
    row = renderer.row(query, [best, second], complete=False)
    assert row.tokens == [*expected, *query.query]


def test_the_prefix_is_bos_and_template(renderer):
    bos = list(renderer.tokenizer.bos)
    assert renderer.prefix("") == bos
    assert renderer.prefix(TEMPLATE) == bos + renderer.tokenizer.encode(TEMPLATE)
