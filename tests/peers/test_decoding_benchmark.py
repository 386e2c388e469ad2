"""The benchmark of decoding tells a wrong token from one that rounding alone put in its place."""

import pytest
import torch

from benchmarks.decoding import NEAR_TIE, Case, Peer
from benchmarks.shared_models import TINY_GPT2, saved_model, torch_model

CASE = Case("three rows", 1.0, 3, 4, (5, 5), 6, (3,), 1)


@pytest.fixture(scope="module")
def served():
    """`generate`'s side after a run, and the logits of row 1's third new token."""
    with saved_model(TINY_GPT2) as folder:
        model = torch_model(folder).eval()
    peer = Peer(model, CASE)
    peer.run()
    read = [*peer._prefix, *peer._rows[1], *peer.made[1][:2]]
    with torch.inference_mode():
        return peer, model(torch.tensor([read])).logits[0, -1]


@pytest.mark.parametrize("place", [1, 500])
def test_the_lead_is_that_of_the_logits_at_the_first_difference(served, place):
    """Of the second likeliest token, and of some other."""
    peer, logits = served
    order = logits.argsort(descending=True).tolist()
    assert peer.made[1][2] == order[0]
    other = [*peer.made[1][:2], order[place], 0, 0, 0]  # what follows doesn't matter
    wanted = 1 - logits[order[place]] / logits[order[0]]
    assert peer.lead(1, other) == pytest.approx(wanted.item(), abs=1e-5)
    if place > 1:
        assert peer.lead(1, other) > NEAR_TIE["bfloat16"] > NEAR_TIE["float32"]
