"""Programs are compiled once each, ahead of time, and forgotten when no level needs them."""

import threading

import jax
import jax.numpy as jnp
import pytest

from pintern.training.programs import Programs


def vector(size: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((size,), jnp.float32)


@pytest.fixture
def programs():
    programs = Programs(lambda x: 2 * x + jnp.arange(x.size))
    for size in (3, 5, 7):
        programs.prepare(size, vector(size))
        programs.get(size)
    yield programs
    programs.close()


def executables() -> int:
    return len(jax.devices()[0].client.live_executables())


def test_what_is_prepared_twice_is_compiled_once(programs):
    programs.prepare(5, vector(5))
    assert programs.get(5)(jnp.ones(5)).tolist() == [2, 3, 4, 5, 6]
    assert programs.count == 3


def test_what_is_not_kept_leaves_memory(programs):
    before = executables()
    programs.keep([5, 9])
    programs.prepare(9, vector(9))
    programs.get(9)
    assert executables() == before - 2 + 1
    assert programs.get(5)(jnp.ones(5)).tolist() == [2, 3, 4, 5, 6]
    with pytest.raises(KeyError):
        programs.get(3)


def test_what_was_forgotten_before_its_turn_is_not_compiled():
    turn = threading.Event()

    def waits(x: jax.Array) -> jax.Array:
        turn.wait()
        return x

    programs = Programs(waits)
    for size in range(1, 9):
        programs.prepare(size, vector(size))
    programs.keep([])
    programs.prepare(9, vector(9))
    turn.set()
    programs.get(9)
    programs.close()
    assert programs.count <= 2  # the one that was under way, and the last


def test_what_was_forgotten_is_compiled_anew(programs):
    programs.keep([5])
    programs.prepare(3, vector(3))
    assert programs.get(3)(jnp.ones(3)).tolist() == [2, 3, 4]
    assert programs.count == 4


def test_nothing_is_compiled_anew_where_all_are_kept(programs):
    programs.keep([3, 5, 7, 9])
    for size in (3, 5, 7):
        programs.prepare(size, vector(size))
    assert programs.count == 3
