"""What is guessed ahead makes answers come in fewer passes, and changes none of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_models
from flax import nnx

from pintern.assemble import split_decoder
from pintern.evaluation.decode import Generator, _row_keys
from pintern.evaluation.drafts import CONTEXT, guess, known_tokens
from pintern.evaluation.sampling import Sampling

pytestmark = pytest.mark.usefixtures("full_precision")

NEW, NEVER, EOS = 12, 599, 1
WILD = 3.0  # a temperature at which anything is drawn
PREFIX = tuple(range(40, 53))


@functools.cache
def rows() -> list[list[int]]:
    rng = np.random.default_rng(1)
    return [rng.integers(2, 300, length).tolist() for length in (9, 1, 16, 3)]


def generator(answers=(), drafted=0, *, eos=NEVER, temperature=0.0) -> Generator:
    sampling = Sampling(NEW, eos, temperature, draft_tokens=drafted)
    split = split_decoder(tiny.parts().checkpoint)
    return Generator(*split, None, PREFIX, sampling, answers=answers)


def varied() -> list[int]:
    """An answer, drawn, that says nothing twice."""
    (answer,) = generator(temperature=WILD)([rows()[2]], batch_rows=1)
    assert len(set(answer)) == len(answer)
    return answer


def passes(made: Generator, row: list[int]) -> tuple[int, list[int]]:
    """Passes over the weights after the row was read, and the tokens."""
    places = made.begin(made.read([row]), _row_keys(0, np.asarray([[0]])))
    places = made.advance(places, 1)
    return int(places.clock), np.asarray(places.made[0, 0]).tolist()


@pytest.mark.parametrize("drafted", [1, NEW + 3])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_are_those_without_guesses(drafted, temperature):
    """Whatever the guesses are: row after row in one place, in a batch, and streamed."""
    plain = generator(temperature=temperature)(rows(), batch_rows=1)
    assert len({tuple(answer) for answer in plain}) == len(plain)
    wrong = [[token + 1 for token in answer] for answer in plain]
    for answers in (plain, wrong):
        ahead = generator(answers, drafted, temperature=temperature)
        assert ahead(rows(), batch_rows=1) == plain
        assert [list(ahead.stream(row, index=i)) for i, row in enumerate(rows())] == plain
    assert ahead(rows(), batch_rows=4) == plain


def test_what_is_guessed_rightly_is_read_in_one_pass():
    """After the first token, which tells where in the known answer the row is."""
    answer = varied()
    for known, drafted, wanted in (([], 3, NEW - 1), ([answer], 3, 3), ([answer], NEW, 1)):
        assert passes(generator(known, drafted, temperature=WILD), rows()[2]) == (wanted, answer)


@pytest.mark.parametrize("end", [1, NEW - 1])
def test_an_answer_ends_where_it_would(end):
    """Guesses that go on behind it don't count."""
    answer = varied()
    ended = {"eos": answer[end], "temperature": WILD}
    for known in ([answer], [answer[:end]]):  # one goes on behind EOS, one stops there
        ahead = generator(known, 7, **ended)
        assert ahead([rows()[2]], batch_rows=1) == [answer[:end]]


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "bloom", "mixtral"])
def test_every_kind_of_layer_reads_guesses_as_it_reads_tokens(family):
    """Learned and rotary positions, shared key heads, windows, ALiBi, experts."""
    decoder = tiny_models.random_decoder(family)
    vocab = decoder.config.vocab_size
    rng = np.random.default_rng(3)
    asked = [rng.integers(2, vocab, n).tolist() for n in (5, 11)]
    split = nnx.split(decoder)
    sampling = Sampling(NEW, vocab)
    plain = Generator(*split, None, (3, 4, 5), sampling)(asked, batch_rows=1)
    wrong = [answer[:4] + answer[5:] for answer in plain]
    ahead = Generator(*split, None, (3, 4, 5), sampling._replace(draft_tokens=4), answers=wrong)
    assert ahead(asked, batch_rows=1) == plain


def guessed(known, text, made, length=3) -> list[int]:
    padded = np.asarray([*[-1] * CONTEXT, *text], np.int32)
    chosen = np.asarray([*made, *[EOS] * 5], np.int32)
    arguments = (jnp.asarray(x) for x in (known_tokens(known, EOS), padded, chosen))
    program = jax.jit(guess, static_argnums=4)
    return program(*arguments, jnp.int32(len(made)), length).tolist()


def test_the_longest_agreement_is_followed_and_of_equal_ones_the_last():
    assert guessed([[5, 6, 7, 8]], [30], [5, 6]) == [7, 8, EOS]
    assert guessed([[9, 5, 6, 11], [4, 6, 12]], [30, 9], [5, 6])[0] == 11
    assert guessed([[5, 6, 11], [5, 6, 12]], [30], [5, 6])[0] == 12
    assert guessed([[5, 6, 11]], [5, 6, 13, 40], [5, 6])[0] == 13  # the text itself is the last


def test_nothing_is_guessed_where_nothing_agrees():
    assert guessed([[5, 6]], [30], [77]) == [-1, -1, -1]
    assert guessed([], [], [5]) == [-1, -1, -1]


def test_an_answer_doesn_t_run_into_the_next():
    """−1 is no token: what stands behind an answer's end can't be right."""
    assert guessed([[5, 6], [7, 8]], [30], [5]) == [6, EOS, -1]


def test_the_last_of_very_many_answers_are_known(monkeypatch):
    monkeypatch.setattr("pintern.evaluation.drafts._KNOWN", 6)
    assert known_tokens([[9, 9], [5, 6], [7]], EOS).tolist() == [-1, 6, EOS, -1, 7, EOS, -1]
