"""The benchmark of decoding tells a wrong token from one that rounding alone put in its place."""

import jax
import pytest
import torch
from flax import nnx

from benchmarks import measure
from benchmarks.decoding import NEAR_TIE, Work, compare
from benchmarks.decoding_sides import Case, Peer
from benchmarks.results import UnequalError
from benchmarks.shared_models import TINY_GPT2, pintern_model, saved_model, torch_model

CASE = Case("three rows", 1.0, 3, 4, (5, 5), 6, (3,), 1)


@pytest.fixture(scope="module")
def served():
    """`generate`'s side after a run, and its model."""
    with saved_model(TINY_GPT2) as folder:
        model = torch_model(folder).eval()
    peer = Peer(model, CASE)
    peer.run()
    return peer, model


@pytest.mark.parametrize("place", [1, 500])
def test_the_lead_is_that_of_the_likeliest_token_over_ours(served, place):
    """Over the second likeliest, and over some other; what is chosen after it is right again."""
    peer, model = served
    prompt = [*peer._prefix, *peer._rows[1]]
    tokens, leads = [], []
    for number in range(CASE.new):
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, -1]
        tokens.append(logits.argsort(descending=True)[place if number == 2 else 0].item())
        leads.append(1 - (logits[tokens[-1]] / logits.max()).item())
    assert tokens[:2] == peer.made[1][:2] and tokens[2] != peer.made[1][2]
    assert peer.lead(1, tokens) == pytest.approx(leads[2], abs=1e-5)
    if place > 1:
        assert peer.lead(1, tokens) > NEAR_TIE["bfloat16"] > NEAR_TIE["float32"]


def test_wrong_tokens_are_told_from_rounding(served):
    """Also those of a row that ends too early, and of a model whose logits are no numbers."""
    peer, _ = served
    right = [peer.made[i] for i in range(CASE.count)]
    compare(right, peer, 0.0)
    for wrong in ([], right[1][:-1], [*right[1][:2], (right[1][2] + 1) % 997, 0, 0, 0]):
        with pytest.raises(UnequalError):
            compare([right[0], wrong, right[2]], peer, NEAR_TIE["bfloat16"])


def test_nan_is_no_near_tie(served, monkeypatch):
    peer, _ = served
    monkeypatch.setattr(peer, "lead", lambda *_: float("nan"))
    with pytest.raises(UnequalError):
        compare([[0]] * CASE.count, peer, NEAR_TIE["bfloat16"])


def test_the_floor_reads_the_weights_once_a_pass():
    """The first token comes of reading the prompt."""
    with saved_model(TINY_GPT2) as folder:
        decoder = pintern_model(folder).decoder
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(decoder)))
    slow, fast = measure.Rate(1.0, {}), measure.Rate(1e30, {})
    made = [[0] * CASE.new] * CASE.count
    assert Work(decoder, fast, slow).floor(CASE, made, 3) == pytest.approx(size * CASE.new)
    # By hand, of two blocks: queries, keys, values and output are 4 × 64², the MLP is 8 × 64².
    keys, block, head = 2 * 64 * 64, 12 * 64 * 64, 997 * 64
    read, later = 4 + 3 * 5, 3 * 5
    prompts = read * (block + keys) + 3 * (block - keys + head)
    wanted = 2 * (prompts + later * (2 * block + head))
    assert Work(decoder, slow, fast).floor(CASE, made, 3) == pytest.approx(wanted)
