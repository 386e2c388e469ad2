"""Retrieval: near things first, nothing of oneself, the same answer whatever else is asked."""

import hashlib
import random
import sys
import time

import numpy as np
import pytest
import tiny

from pintern.config.checks import CHOICES
from pintern.errors import UserError
from pintern.prompts.retrievers import lexical
from pintern.prompts.retrievers.controls import FixedRetriever, RandomRetriever
from pintern.prompts.retrievers.lexical import BM25Retriever
from pintern.prompts.retrievers.make import RETRIEVERS, SIMILARITIES, make_retriever
from pintern.prompts.retrievers.vectors import Encoder

POOL = [
    "How many orders came from France in 2021?",
    "How many orders came from Spain in 2022?",
    "List the customers of segment 3.",
    "Which article weighs most?",
    "How many orders came from France in 2021?",
    "???",
    "Which warehouse holds article 4711?",
]
# sentence_transformers is `dense` with an encoder that needs torch: see tests/peers.
KINDS = tuple(kind for kind in RETRIEVERS if kind != "sentence_transformers")
every_kind = pytest.mark.parametrize("kind", KINDS)


def hashed_words(texts):
    """A vector a text: the sum of a random one for each of its words."""
    vectors = np.zeros((len(texts), 24), np.float32)
    for row, text in enumerate(texts):
        for word in text.lower().split():
            seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8])
            vectors[row] += np.random.default_rng(seed).normal(size=24)
    return vectors


def make(kind, pool, seed=0, **options):
    encoder = Encoder(hashed_words, lambda texts: hashlib.sha256(repr(texts).encode()).hexdigest())
    if kind == "similarity_band":
        options = {"quantile": 0.8} | options
    return make_retriever(kind, pool, seed=seed, encoder=encoder, **options)


def retrieve_for_training(retriever, pool, k):
    return retriever.neighbours(pool, k, exclude=range(len(pool)))


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


def test_bm25_finds_words_of_any_script():
    """Chinese writes no spaces; Hindi's vowel signs are no letters; an accent may stand apart."""
    pool = [
        "红色螺栓在哪里？",
        "列出客户。",
        "法国有多少订单？",
        "नीला बोल्ट",
        "कितने ऑर्डर",
        "Où est le café?",
    ]
    retriever = BM25Retriever(pool)
    asked = ["德国有多少订单？", "螺栓在哪里？", "कितने बोल्ट हैं ऑर्डर में", "un cafe\u0301"]
    assert [found[0] for found in retriever.neighbours(asked, 1)] == [2, 0, 4, 5]
    assert lexical._words("कितने ऑर्डर?") == ["कितने", "ऑर्डर"]
    assert lexical._words("table_7: x2, Å-b") == ["table_7", "x2", "å", "b"]


def test_bm25_breaks_ties_by_index():
    retriever = BM25Retriever(["x a", "y b", "x c", "y d", "x e"])
    found = retriever.neighbours(["x", "nothing known", ""], 4)
    assert found == [[0, 2, 4, 1], [0, 1, 2, 3], [0, 1, 2, 3]]


def test_the_index_of_a_large_pool_is_kept_and_a_broken_one_made_again(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(lexical, "LARGE", 4)
    folder = tmp_path / "new" / "folder"
    fresh = BM25Retriever(POOL, folder).neighbours(POOL, 3)
    (kept,) = folder.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(lexical, "_index", None)  # would be called to build one
        assert BM25Retriever(POOL, folder).neighbours(POOL, 3) == fresh
    BM25Retriever([*POOL, "one more"], folder)
    assert len(list(folder.iterdir())) == 2, "another pool, another index"
    (kept / "data.csc.index.npy").write_bytes(b"half")
    assert BM25Retriever(POOL, folder).neighbours(POOL, 3) == fresh
    assert "is broken" in capsys.readouterr().err
    assert BM25Retriever(POOL, folder).neighbours(POOL, 3) == fresh
    assert "is broken" not in capsys.readouterr().err


@pytest.mark.parametrize("file", ["data", "indices", "indptr"])
def test_an_index_that_is_damaged_or_in_part_gone_is_made_again(
    tmp_path, monkeypatch, capsys, file
):
    """The library reads a file of other bytes and the same length, and ranks by it."""
    monkeypatch.setattr(lexical, "LARGE", 4)
    fresh = BM25Retriever(POOL, tmp_path).neighbours(POOL, 3)
    (kept,) = tmp_path.iterdir()
    path = kept / f"{file}.csc.index.npy"
    content = path.read_bytes()
    for damage in (lambda: path.write_bytes(content[:-8] + bytes(8)), path.unlink):
        damage()
        assert BM25Retriever(POOL, tmp_path).neighbours(POOL, 3) == fresh
        assert "is broken" in capsys.readouterr().err
        assert path.read_bytes() == content


@pytest.mark.parametrize("kind", ["bm25", "dense"])
def test_what_a_large_pools_items_are_shown_is_kept(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pintern.prompts.retrievers.make.LARGE", 4)

    def shown(pool, k=2, seed=0, folder=tmp_path):
        encoder = Encoder(hashed_words, lambda texts: f"by words {seed}")
        retriever = make_retriever(kind, pool, seed=0, encoder=encoder, cache=folder)
        return retriever.neighbours(pool, k, exclude=range(len(pool)))

    fresh = shown(POOL, folder=None)
    assert shown(POOL) == fresh
    (kept,) = tmp_path.glob("neighbours-*")
    with monkeypatch.context() as patch:
        for name in ("lexical.BM25Retriever", "dense.DenseRetriever"):
            patch.setattr(f"pintern.prompts.retrievers.{name}.neighbours", None)
        assert shown(POOL) == fresh
    assert shown(POOL, k=3) != fresh
    assert shown(POOL[::-1]) != fresh
    before = len(list(tmp_path.glob("neighbours-*")))
    shown(POOL, seed=1)
    again = len(list(tmp_path.glob("neighbours-*")))
    assert (before, again) == (3, 4 if kind == "dense" else 3), "another model, other vectors"
    kept.write_bytes(kept.read_bytes()[:-9])
    assert shown(POOL) == fresh
    assert "is broken" in capsys.readouterr().err


def test_bm25_ranks_as_a_full_sort_would():
    pool = made_up_pool(300)
    everything = BM25Retriever(pool).neighbours(pool[:50], 299)
    for k in (1, 3, 10):
        assert BM25Retriever(pool).neighbours(pool[:50], k) == [found[:k] for found in everything]


@every_kind
def test_leave_one_out_leaves_out_copies_too(kind):
    for own, found in enumerate(retrieve_for_training(make(kind, POOL), POOL, 5)):
        assert len(set(found)) == 5
        assert all(POOL[i] != POOL[own] for i in found)


@every_kind
def test_without_exclusion_anything_may_come(kind):
    found = make(kind, POOL).neighbours([POOL[0]], 6)
    assert {0, 4} & set(found[0])
    assert found == make(kind, POOL).neighbours([POOL[0]], 6, exclude=[None])


@every_kind
def test_answer_depends_on_the_query_alone(kind):
    pool = made_up_pool(100)
    retriever = make(kind, pool, 3)
    queries = [*pool[:30], *made_up_pool(20, seed=1)]
    together = retriever.neighbours(queries, 4)
    alone = [make(kind, pool, 3).neighbours([query], 4)[0] for query in queries]
    assert together == alone
    assert retriever.neighbours(queries[::-1], 4) == together[::-1]


@every_kind
def test_fewer_are_the_head_of_more(kind):
    pool = made_up_pool(60)
    retriever = make(kind, pool)
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
    retriever = make(kind, POOL)
    assert len(retriever.neighbours(["a"], 6)[0]) == 6
    for k in (7, -1):
        with pytest.raises(UserError, match=f"{k} examples per query were asked of 7 labelled"):
            retriever.neighbours(["a"], k)
    with pytest.raises(UserError, match=r"6 examples.*France in 2021.*2 of the pool's 7"):
        retrieve_for_training(retriever, POOL, 6)


@every_kind
def test_a_pair_alone_is_no_example_and_may_be_trained_on(kind):
    retriever = make(kind, ["alone"])
    assert retriever.neighbours(["alone"], 0, exclude=[0]) == [[]]
    with pytest.raises(UserError, match=r"1 examples per query .* or give more"):
        retriever.neighbours(["another"], 1)


def test_a_bad_kind_is_named():
    with pytest.raises(UserError, match=r"'dense2'.*bm25, dense.*fixed"):
        make("dense2", POOL)
    with pytest.raises(UserError, match=r"'random'.*bm25, dense, sentence_transformers"):
        make("similarity_band", POOL, similarity="random")


def test_the_config_takes_every_kind():
    assert set(CHOICES["prompt.retriever"]) == set(RETRIEVERS)
    assert set(CHOICES["prompt.similarity"]) == set(SIMILARITIES)


def test_dense_puts_the_highest_cosine_first():
    pool = made_up_pool(80)
    queries = made_up_pool(20, seed=1)
    unit = [
        v / np.linalg.norm(v, axis=1, keepdims=True) for v in map(hashed_words, (queries, pool))
    ]
    expected = np.argsort(-(unit[0].astype(float) @ unit[1].T.astype(float)), axis=1)[:, :5]
    assert make("dense", pool).neighbours(queries, 5) == expected.tolist()


@pytest.mark.parametrize("similarity", ["bm25", "dense"])
def test_the_upper_end_of_the_band_is_the_similarity_itself(similarity):
    pool = [*made_up_pool(60), *made_up_pool(10)]
    band = make("similarity_band", pool, similarity=similarity, quantile=1.0)
    for k in (1, 3, 40):
        ordinary = retrieve_for_training(make(similarity, pool), pool, k)
        assert retrieve_for_training(band, pool, k) == ordinary


@pytest.mark.parametrize("similarity", ["bm25", "dense"])
def test_a_band_of_a_large_pool_is_found_as_of_a_small_one(similarity, tmp_path, monkeypatch):
    """Beside a large pool the similarity's retriever keeps what it found, without any scores."""
    pool, ask = made_up_pool(60), {"similarity": similarity, "quantile": 0.5}
    expected = retrieve_for_training(make("similarity_band", pool, **ask), pool, 3)
    monkeypatch.setattr("pintern.prompts.retrievers.make.LARGE", 4)
    band = make("similarity_band", pool, cache=tmp_path, **ask)
    assert retrieve_for_training(band, pool, 3) == expected


@pytest.mark.parametrize("similarity", ["bm25", "dense"])
def test_the_band_is_where_a_full_sort_has_it(similarity):
    pool = [*made_up_pool(50), *made_up_pool(4)]
    everything = make(similarity, pool).neighbours(pool, 53)
    ranked = [[*found, *({*range(54)} - {*found})] for found in everything]  # the 54th is last
    for quantile, k in ((0.0, 1), (0.0, 4), (0.1, 3), (0.5, 1), (0.5, 5), (0.93, 2)):
        band = make("similarity_band", pool, similarity=similarity, quantile=quantile)
        # Of 54 items, rank t counts from the least similar.
        top = 53 - max(int(quantile * 53 + 0.5), k - 1)
        assert band.neighbours(pool, k) == [row[top : top + k] for row in ranked]


@pytest.mark.parametrize("similarity", ["bm25", "dense"])
def test_a_higher_band_is_nearer(similarity):
    pool = made_up_pool(70)
    scorer = make(similarity, pool)
    scores = [row.copy() for row in scorer.scores(pool)]
    before = np.full(70, -np.inf)
    for quantile in (0.0, 0.1, 0.35, 0.5, 0.8, 0.97, 1.0):
        band = make("similarity_band", pool, similarity=similarity, quantile=quantile)
        found = retrieve_for_training(band, pool, 3)
        here = np.array([row[indices].mean() for row, indices in zip(scores, found, strict=True)])
        assert (here >= before).all()
        assert (here > before).any() or similarity == "bm25"
        before = here


@pytest.mark.parametrize("quantile", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("similarity", ["bm25", "dense"])
def test_no_band_holds_oneself_or_a_copy(similarity, quantile):
    pool = [*made_up_pool(9), *made_up_pool(9)[2:5], made_up_pool(9)[2]]
    band = make("similarity_band", pool, similarity=similarity, quantile=quantile)
    for k in (1, 4, 10):
        for own, found in enumerate(retrieve_for_training(band, pool, k)):
            assert len(set(found)) == k
            assert all(pool[i] != pool[own] for i in found)


def test_fixed_shows_everybody_the_same():
    pool = made_up_pool(12)
    assert FixedRetriever(pool).neighbours(["a", "b"], 3) == [[0, 1, 2]] * 2
    listed = FixedRetriever(pool, (7, 2, 9))
    assert listed.neighbours(["a", "b"], 2) == [[7, 2]] * 2
    assert listed.neighbours(["a"], 5) == [[7, 2, 9, 0, 1]]
    found = retrieve_for_training(listed, pool, 2)
    assert found[7] == [2, 9]
    assert found[2] == [7, 9]
    assert found[9] == found[0] == [7, 2]


@pytest.mark.parametrize(
    ("indices", "said"), [((3, 12), "lists 12.*0 to 11"), ((-1,), "lists -1"), ((2, 2), "twice")]
)
def test_fixed_indices_are_checked(indices, said):
    with pytest.raises(UserError, match=said):
        FixedRetriever(made_up_pool(12), indices)


@every_kind
def test_thousands_of_queries_are_quick(kind):
    pool = made_up_pool(4000)
    start = time.perf_counter()
    found = retrieve_for_training(make(kind, pool), pool, 5)
    assert len(found) == 4000
    assert time.perf_counter() - start < 20


def test_the_command_shows_as_many_pairs_as_the_fullest_prompt_has(tmp_path):
    config = tiny.config(
        curriculum__schedule="explicit",
        curriculum__stages=4,  # the default: levels are listed
        curriculum__keep_rates=(1.0, 0.0),
        curriculum__shots=(3, 0),
    )
    file = tiny.config_file(tmp_path, config)
    command = ("-m", "pintern.retrieve", f"--config={file}", "--show=2")
    code, out, err = tiny.run(*command)
    assert code == 0, err
    assert out.count("→") == 2 * 3
    code, out, err = tiny.run(*command, "--config.curriculum.shots=0,0")
    assert (code, out) == (2, "")
    assert "shows no labelled pairs" in err


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    for kind in ("sentence_transformers", "similarity_band"):
        with pytest.raises(UserError, match=r"pip install 'pintern\[dense\]'"):
            make(kind, POOL, sentence_model="any", similarity="sentence_transformers")
