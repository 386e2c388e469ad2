"""A token alone, in the forms that a GPU gets, is what it is in the usual ones."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from tiny_models import EVERY_FAMILY, LAYERS, random_adapter, random_decoder

from pintern.assemble import split_decoder
from pintern.evaluation.decode import Generator
from pintern.evaluation.sampling import Sampling
from pintern.evaluation.unroll import unrolled
from pintern.models import alone
from pintern.models.norms import Norm
from pintern.models.quantize import quantize

pytestmark = pytest.mark.usefixtures("full_precision")

BEHIND_NORM = {"llama", "mistral", "qwen2", "qwen3"}  # others' norms or experts stand otherwise


def as_on_a_gpu(monkeypatch) -> list[str]:
    """Takes the forms for a GPU from here on; the names of those that were taken."""
    taken = []
    for name in ("behind_norm", "onto"):
        of = getattr(alone, name)
        monkeypatch.setattr(
            alone, name, lambda *given, of=of: taken.append(of.__name__) or of(*given)
        )
    monkeypatch.setattr(alone, "is_alone", lambda *batch: math.prod(batch) == 1)
    return taken


def fifth_token(family: str, *, int8: bool = False) -> tuple:
    """Logits, keys and values of a token behind four others; of the base, then with LoRA."""
    decoder = random_decoder(family)
    if int8:
        quantize(decoder)
    graph, base = unrolled(*nnx.split(decoder))
    adapters = (None, random_adapter(family))

    @jax.jit
    def read(base: nnx.State) -> list:
        decoder, found = nnx.merge(graph, base), []
        for adapter in adapters:
            first = jnp.asarray([[[3, 5, 7, 2]]])
            _, cache = decoder(first, jnp.arange(4)[None, None], adapter=adapter)
            cache = cache.with_room(2).without_row_axis()
            last = jnp.asarray([[[11]]])
            hidden, cache = decoder(last, jnp.asarray([[[4]]]), cache, adapter=adapter)
            found.append((decoder.logits(hidden), cache.rows))
        return found

    return read(base)


@pytest.mark.parametrize("family", sorted(EVERY_FAMILY))
def test_every_family_has_the_same_logits(family, monkeypatch):
    expected = fifth_token(family)
    taken = as_on_a_gpu(monkeypatch)
    found = fifth_token(family)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), found, expected)
    # LoRA on every map leaves them as they are.
    assert taken == ["behind_norm", "onto"] * 2 * LAYERS * (family in BEHIND_NORM)


def test_int8_has_the_same_logits(monkeypatch):
    expected = fifth_token("llama", int8=True)
    taken = as_on_a_gpu(monkeypatch)
    found = fifth_token("llama", int8=True)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), found, expected)
    assert taken == ["behind_norm"] * 2 * LAYERS


@pytest.mark.parametrize("outputs", [6, 16])
@pytest.mark.parametrize("offset", [False, True])
def test_a_map_behind_a_norm_and_onto_a_sum(outputs, offset):
    rng = np.random.default_rng(0)
    x, w, residual = (jnp.asarray(rng.normal(size=n)) for n in (12, (outputs, 12), outputs))
    norm = Norm(12, eps=0.1, offset=offset)
    norm.scale.set_value(jnp.asarray(rng.normal(1, 0.2, 12)))
    found = alone.behind_norm(x, w, norm.factors(), norm.eps)
    np.testing.assert_allclose(found, w @ norm(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(alone.onto(residual, x, w), residual + w @ x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("drafts", [0, 2])
@pytest.mark.parametrize("prefix", [(), tuple(range(40, 53))])
def test_generation_is_the_same(prefix, drafts, monkeypatch):
    def generate(new: int) -> list[list[int]]:
        """Of so many tokens: another number is another program."""
        split = split_decoder(tiny.parts().checkpoint)
        sampling = Sampling(new, 599, draft_tokens=drafts)
        rows = [[5, 9, 200, 31], [7]]
        return Generator(*split, None, prefix, sampling)(rows, batch_rows=1)

    expected = generate(7)
    taken = as_on_a_gpu(monkeypatch)
    assert generate(6) == [row[:6] for row in expected]
    assert bool(taken) == (not drafts)


def test_elsewhere_nothing_is_alone():
    assert not alone.is_alone(1, 1, 1)
