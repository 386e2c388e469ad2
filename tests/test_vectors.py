"""Vectors of texts: the base's pooled states, and the pool's on disk."""

import dataclasses
import hashlib

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny_models import EVERY_FAMILY, VOCAB, WIDTH, random_decoder

from pintern.assemble import assemble, text_encoder
from pintern.errors import UserError
from pintern.models.pooled import pooled_states_of
from pintern.prompts import kept
from pintern.prompts.retrievers.dense import DenseRetriever
from pintern.prompts.retrievers.vectors import (
    Encoder,
    base_encoder,
    cached_vectors,
    vectors_of,
)
from pintern.prompts.tokens import PieceTokenizer

TEXTS = [f"text {'x' * (i % 7)} {i}" for i in range(600)]


class Counting:
    """An encoder that tells how many texts it was given."""

    def __init__(self, dim=6, salt=""):
        self.dim, self.salt, self.asked = dim, salt, 0

    def encode(self, texts):
        self.asked += len(texts)
        seeds = [hashlib.sha256((self.salt + text).encode()).digest()[:8] for text in texts]
        rows = [np.random.default_rng(int.from_bytes(seed)).normal(size=self.dim) for seed in seeds]
        return np.array(rows, np.float32)

    def key(self, texts):
        return hashlib.sha256(repr((self.salt, texts)).encode()).hexdigest()

    @property
    def encoder(self):
        return Encoder(self.encode, self.key)


def ids_of(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCAB, length).tolist() for length in lengths]


@pytest.mark.parametrize(("family", "bos"), [("llama", (1,)), ("gpt2", ())])
def test_states_are_pooled_over_the_texts_own_tokens(family, bos):
    decoder = random_decoder(family)
    texts = ids_of((3, 19))
    found = pooled_states_of(decoder, bos)(texts)
    assert found.shape == (2, WIDTH)
    for ids, vector in zip(texts, found, strict=True):
        tokens = jnp.array([[[*bos, *ids]]])
        hidden, _ = decoder(tokens, jnp.arange(tokens.shape[2])[None, None])
        np.testing.assert_allclose(vector, hidden[0, 0, len(bos) :].mean(axis=0), atol=2e-5)


def test_pooled_states_of_nothing_and_of_too_much():
    states = pooled_states_of(random_decoder("gpt2"), ())
    found = states([[], [3, 4]])
    assert (found[0] == 0).all()
    assert np.isfinite(found).all() and (found[1] != 0).any()
    assert states([]).shape == (0, WIDTH)
    limit = EVERY_FAMILY["gpt2"]["n_positions"]
    assert states(ids_of((limit,))).shape == (1, WIDTH)
    with pytest.raises(UserError, match=f"33 tokens; the model's context is {limit}"):
        states(ids_of((4, limit + 1)))


def test_vectors_come_in_the_order_of_the_texts():
    counting = Counting()
    assert (vectors_of(TEXTS, counting.encoder) == counting.encode(TEXTS)).all()


def test_cached_vectors_are_the_fresh_ones(tmp_path, capsys):
    counting = Counting()
    fresh = cached_vectors(TEXTS, counting.encoder, tmp_path / "deep" / "folder")
    assert counting.asked == 600
    assert "vectors of the pool: 600/600 texts" in capsys.readouterr().err
    again = cached_vectors(TEXTS, counting.encoder, tmp_path / "deep" / "folder")
    assert counting.asked == 600
    assert not capsys.readouterr().err
    assert fresh.tobytes() == again.tobytes()
    assert len(list((tmp_path / "deep" / "folder").iterdir())) == 1  # no temporary file stays
    cached_vectors(TEXTS[1:], counting.encoder, tmp_path / "deep" / "folder")
    assert counting.asked == 1199
    cached_vectors(TEXTS, Counting(salt="other").encoder, tmp_path / "deep" / "folder")
    assert len(list((tmp_path / "deep" / "folder").iterdir())) == 3


def test_vectors_that_another_process_lacks_are_made_by_all(tmp_path, monkeypatch):
    """Two processes are played by what the other one says: `first` found, or that it found none."""
    counting = Counting()
    cached_vectors(TEXTS, counting.encoder, tmp_path)
    own = hashlib.sha256(counting.encode(TEXTS).tobytes()).hexdigest()
    counting.asked = 0
    monkeypatch.setattr(kept, "count", lambda: 2)
    for first, other_lacks, made in ((own, False, 0), (own, True, 600), (None, False, 600)):
        monkeypatch.setattr(kept, "from_first", lambda _, first=first: first)
        monkeypatch.setattr(kept, "any_of", lambda said, other=other_lacks: said or other)
        cached_vectors(TEXTS, counting.encoder, tmp_path)
        assert counting.asked == made
        counting.asked = 0


@pytest.mark.parametrize("harm", ["cut", "flip", "empty", "other", "count"])
def test_a_broken_file_is_made_again(tmp_path, harm, capsys):
    counting = Counting()
    fresh = cached_vectors(TEXTS, counting.encoder, tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    middle = len(whole) // 2
    if harm == "count":
        with path.open("wb") as file:
            np.savez(file, vectors=fresh[:-1])
    else:
        path.write_bytes(
            {
                "cut": whole[:middle],
                "flip": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
                "empty": b"",
                "other": b"not an archive",
            }[harm]
        )
    again = cached_vectors(TEXTS, counting.encoder, tmp_path)
    assert counting.asked == 1200
    assert again.tobytes() == fresh.tobytes()
    assert path.read_bytes() == whole
    if harm != "count":
        assert "is made again" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_no_obstacle(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    counting = Counting()
    found = cached_vectors(TEXTS[:5], counting.encoder, tmp_path / "file" / "folder")
    assert found.shape == (5, 6)
    assert "can't be kept" in capsys.readouterr().err


def test_a_retriever_from_the_cache_answers_as_a_fresh_one(tmp_path):
    counting = Counting()
    queries = [*TEXTS[:5], "new", "newer", "new"]
    fresh = DenseRetriever(TEXTS, counting.encoder, tmp_path)
    answers = fresh.neighbours(queries, 4)
    assert counting.asked == 602  # the pool, and the two queries that don't stand in it
    again = DenseRetriever(TEXTS, counting.encoder, tmp_path)
    assert counting.asked == 602  # nothing before it is asked
    assert again.neighbours(queries, 4) == answers
    assert counting.asked == 604


def test_the_base_embeds_the_pool_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = tiny.config(prompt__retriever="dense")
    prompts = assemble(config).prompts
    assert not list(tmp_path.rglob("*.npz"))  # made when it is first asked for
    shots = prompts.shots_for_pool(1)
    (path,) = tmp_path.glob("pintern/vectors/*.npz")
    before = path.stat().st_mtime_ns
    assert assemble(config).prompts.shots_for_pool(1) == shots
    assert path.stat().st_mtime_ns == before


def test_the_key_tells_bases_apart():
    parts = tiny.parts()

    def key(config, **changes):
        checkpoint = dataclasses.replace(parts.checkpoint, **changes)
        return text_encoder(config, checkpoint, parts.tokenizer).key(["a", "b"])

    keys = {
        key(tiny.config()),
        key(tiny.config(model__quantize="int8")),
        key(tiny.config(), fingerprint="another"),
    }
    assert len(keys) == 3
    assert key(tiny.config(), directory=None) in keys


def test_the_key_follows_the_ids_and_not_the_texts_alone():
    """An edited tokenizer gives the same texts other vectors."""
    tokenizer = tiny.parts().tokenizer
    edited = PieceTokenizer.load(tiny.base())
    key, other = (base_encoder(t, lambda ids: ids, "one base").key for t in (tokenizer, edited))
    assert key(["red bolt"]) == other(["red bolt"]) != key(["red nut"])
    edited.tokenizer.add_tokens(["red bolt"])
    assert key(["red bolt"]) != other(["red bolt"])


def test_as_many_queries_as_the_pool_has_are_still_their_own():
    """The pool's vectors stand in for its own texts in their order, and for no others."""
    retriever = DenseRetriever(TEXTS, Counting().encoder)
    assert retriever.neighbours(TEXTS[::-1], 1) == [[i] for i in reversed(range(len(TEXTS)))]


def test_the_band_of_the_base_is_reached_by_config(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    queries = ["Where is the red nut?"]
    found = {}
    for quantile in (0.0, 1.0):
        config = tiny.config(
            prompt__retriever="similarity_band", prompt__similarity_quantile=quantile
        )
        found[quantile] = assemble(config).prompts.shots_for(queries, 2)
    dense = assemble(tiny.config(prompt__retriever="dense")).prompts.shots_for(queries, 2)
    assert found[1.0] == dense
    assert not any(shot in dense[0] for shot in found[0.0][0])
