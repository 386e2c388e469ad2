"""Blocked top-k: what a full sort gives, for any blocks, in bounded memory."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pintern.errors import UserError
from pintern.prompts.retrievers.topk import cosines, nearest, unit_vectors

NONE: list[int] = []


def vectors(count, dim, seed=0, distinct=None):
    """Random vectors; with `distinct` many of them are copies of few."""
    made = np.random.default_rng(seed).normal(size=(distinct or count, dim)).astype(np.float32)
    return made[np.random.default_rng(seed + 1).integers(0, len(made), count)] if distinct else made


def by_sorting(queries, items, k, left_out):
    found = []
    for scores, places in zip(cosines(queries, items), left_out, strict=True):
        order = [i for i in np.argsort(-scores, kind="stable") if i not in places]
        found.append(order[:k])
    return found


@settings(max_examples=60, deadline=None)
@given(
    items=st.integers(2, 40),
    distinct=st.integers(1, 40),
    k=st.integers(0, 12),
    blocks=st.tuples(st.integers(1, 13), st.integers(1, 17)),
    seed=st.integers(0, 99),
)
def test_any_blocks_give_what_a_full_sort_gives(items, distinct, k, blocks, seed):
    pool = unit_vectors(vectors(items, 5, seed, distinct))
    queries = unit_vectors(vectors(9, 5, seed + 2))
    rng = np.random.default_rng(seed)
    k = min(k, items - 1)
    left_out = [
        sorted(rng.choice(items, rng.integers(0, items - k), False).tolist()) for _ in queries
    ]
    found = nearest(queries, pool, k, left_out, query_block=blocks[0], item_block=blocks[1])
    assert found.tolist() == by_sorting(queries, pool, k, left_out)


def test_order_of_items_may_be_the_worst():
    """Items come in rising similarity, so that each block holds better ones than all before."""
    query = unit_vectors(vectors(1, 16))
    pool = unit_vectors(vectors(3000, 16, 1))
    pool = pool[np.argsort(cosines(query, pool)[0])]
    assert nearest(query, pool, 5, [NONE], item_block=100).tolist() == [
        [2999, 2998, 2997, 2996, 2995]
    ]


def test_cosines_do_not_depend_on_order_or_company():
    a, b = unit_vectors(vectors(33, 300)), unit_vectors(vectors(47, 300, 5))
    whole = cosines(a, b)
    assert (whole == cosines(b, a).T).all()
    assert (cosines(a[:, ::-1], b[:, ::-1]) == whole).all()
    assert all(
        (cosines(a[i : i + 1], b[j : j + 1]) == whole[i, j]).all() for i, j in ((0, 0), (32, 46))
    )
    exact = np.linalg.norm(vectors(33, 300).astype(float), axis=1)
    plain = (vectors(33, 300).astype(float) / exact[:, None]) @ (
        vectors(47, 300, 5).astype(float).T
        / np.linalg.norm(vectors(47, 300, 5).astype(float), axis=1)
    )
    np.testing.assert_allclose(whole, plain, atol=3e-8)


def test_zero_large_and_broken_vectors():
    units = unit_vectors(np.array([[0, 0], [3e38, 3e38], [1e-38, 0]], np.float32))
    np.testing.assert_allclose(
        cosines(units, units)[1:, 1:], [[1, 0.5**0.5], [0.5**0.5, 1]], atol=1e-7
    )
    assert (units[0] == 0).all()
    with pytest.raises(UserError, match="vector is not finite"):
        unit_vectors(np.array([[1.0, np.nan]], np.float32))


PROGRAM = """
import resource, sys
import numpy as np
from pintern.prompts.retrievers.topk import nearest

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

count = int(sys.argv[1])
rng = np.random.default_rng(0)
units = np.rint(2.0**26 / 4 * rng.choice([-1, 1], (count, 16))).astype(np.int32)
nearest(units[:64], units, 4, [[]] * 64)
before = peak()
found = nearest(units, units, 4, [[i] for i in range(count)])
assert found.shape == (count, 4)
print(peak() - before)
"""


def test_peak_memory_is_that_of_blocks():
    """All scores of 12,000 × 12,000 would take 1,152 MB; a block takes 64 MB and its mask 8."""
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, "12000"], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 300
