"""Retrieval: near things first, nothing of oneself, the same answer whatever else is asked."""

import random
import time

import pytest

from pintern.errors import UserError
from pintern.prompts.retrieve import (
    KINDS,
    BM25Retriever,
    RandomRetriever,
    make_retriever,
    retrieve_for_training,
)

POOL = [
    "How many orders came from France in 2021?",
    "How many orders came from Spain in 2022?",
    "List the customers of segment 3.",
    "Which article weighs most?",
    "How many orders came from France in 2021?",
    "???",
    "Which warehouse holds article 4711?",
]
every_kind = pytest.mark.parametrize("kind", KINDS)


def made_up_pool(size, seed=0):
    rng = random.Random(seed)
    words = [f"word{i}" for i in range(200)]
    return [" ".join(rng.choices(words, k=8)) + f" {i}" for i in range(size)]


def test_bm25_puts_the_nearest_first():
    retriever = BM25Retriever(POOL)
    queries = ["article 4711", "ORDERS FROM SPAIN", "segment customers", "which article?"]
    assert [found[0] for found in retriever.neighbours(queries, 1)] == [6, 1, 2, 3]


def test_bm25_keeps_numbers_and_short_words():
    retriever = BM25Retriever(["in 2021", "in 2022", "of 2023", "on 2024"])
    assert retriever.neighbours(["2022", "of", "in"], 1) == [[1], [2], [0]]


def test_bm25_breaks_ties_by_index():
    retriever = BM25Retriever(["x a", "y b", "x c", "y d", "x e"])
    found = retriever.neighbours(["x", "nothing known", ""], 4)
    assert found == [[0, 2, 4, 1], [0, 1, 2, 3], [0, 1, 2, 3]]


def test_bm25_ranks_as_a_full_sort_would():
    pool = made_up_pool(300)
    everything = BM25Retriever(pool).neighbours(pool[:50], 299)
    for k in (1, 3, 10):
        assert BM25Retriever(pool).neighbours(pool[:50], k) == [found[:k] for found in everything]


@every_kind
def test_leave_one_out_leaves_out_copies_too(kind):
    for own, found in enumerate(retrieve_for_training(make_retriever(kind, POOL, 0), POOL, 5)):
        assert len(set(found)) == 5
        assert all(POOL[i] != POOL[own] for i in found)


@every_kind
def test_without_exclusion_anything_may_come(kind):
    found = make_retriever(kind, POOL, 0).neighbours([POOL[0]], 6)
    assert {0, 4} & set(found[0])
    assert found == make_retriever(kind, POOL, 0).neighbours([POOL[0]], 6, exclude=[None])


@every_kind
def test_answer_depends_on_the_query_alone(kind):
    pool = made_up_pool(100)
    retriever = make_retriever(kind, pool, 3)
    queries = [*pool[:30], *made_up_pool(20, seed=1)]
    together = retriever.neighbours(queries, 4)
    alone = [make_retriever(kind, pool, 3).neighbours([query], 4)[0] for query in queries]
    assert together == alone
    assert retriever.neighbours(queries[::-1], 4) == together[::-1]


@every_kind
def test_fewer_are_the_head_of_more(kind):
    pool = made_up_pool(60)
    retriever = make_retriever(kind, pool, 0)
    most = retrieve_for_training(retriever, pool, 9)
    for k in range(9):
        assert retrieve_for_training(retriever, pool, k) == [found[:k] for found in most]


def test_random_draws_differ_by_seed_and_query_and_cover_the_pool():
    pool = made_up_pool(200)
    one = retrieve_for_training(RandomRetriever(pool, 0), pool, 5)
    assert one != retrieve_for_training(RandomRetriever(pool, 1), pool, 5)
    assert len({tuple(found) for found in one}) == 200
    assert len({i for found in one for i in found}) > 190


def test_random_draw_is_the_same_in_every_process():
    assert RandomRetriever(made_up_pool(1000), 7).neighbours(["a", "b"], 3) == [
        [256, 974, 18],
        [972, 302, 159],
    ]


@every_kind
def test_too_many_are_refused(kind):
    retriever = make_retriever(kind, POOL, 0)
    assert len(retriever.neighbours(["a"], 6)[0]) == 6
    for k in (7, -1):
        with pytest.raises(UserError, match=f"{k} examples per query were asked of a pool of 7"):
            retriever.neighbours(["a"], k)
    with pytest.raises(UserError, match=r"6 examples.*France in 2021.*2 of the pool's 7"):
        retrieve_for_training(retriever, POOL, 6)


def test_bad_kind_and_bad_pool_are_named():
    with pytest.raises(UserError, match=r"'dense2'.*bm25, random"):
        make_retriever("dense2", POOL, 0)
    for kind in KINDS:
        with pytest.raises(UserError, match="pool has 1 item"):
            make_retriever(kind, ["alone"], 0)


@every_kind
def test_thousands_of_queries_are_quick(kind):
    pool = made_up_pool(4000)
    start = time.perf_counter()
    found = retrieve_for_training(make_retriever(kind, pool, 0), pool, 5)
    assert len(found) == 4000
    assert time.perf_counter() - start < 20
