"""What a GPU is asked for reaches no other backend, and a decorated function stays what it was."""

import jax
import jax.numpy as jnp
import pytest

from pintern import compiling


@compiling.jitted(compiling.LOOP, static_argnums=0)
def scaled(factor: int, x: jax.Array) -> jax.Array:
    """x times a factor."""
    return factor * x


def test_options_are_for_gpus_alone(monkeypatch):
    assert compiling.options(compiling.STEP) is None
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compiling.options(compiling.STEP) == dict(compiling.STEP)


@pytest.mark.parametrize("options", [compiling.STEP, compiling.READ, compiling.LOOP])
def test_xla_knows_them(options):
    """Their names and values; a CPU's compiler takes them and makes nothing of them."""
    assert jax.jit(lambda x: 2 * x, compiler_options=dict(options))(jnp.ones(3)).sum() == 6
    with pytest.raises(Exception, match="no_such"):
        jax.jit(lambda x: 2 * x, compiler_options={"xla_gpu_no_such": True})(jnp.ones(3))


def test_a_decorated_function_is_compiled_once_lowered_and_inlined():
    x = jnp.arange(3.0)
    assert scaled.__name__ == "scaled"
    assert scaled(2, x).tolist() == [0, 2, 4]
    assert scaled.lower(2, x).compile()(x).tolist() == [0, 2, 4]
    # Options are taken at the top level only: within another program it is a part of that.
    assert jax.jit(lambda x: scaled(3, x) + 1)(x).tolist() == [1, 4, 7]
    assert jax.eval_shape(lambda x: scaled(3, x), x).shape == (3,)


@pytest.mark.parametrize(
    ("backend", "devices", "wanted", "layers", "found"),
    [
        ("cpu", 1, 0, 12, 1),
        ("gpu", 1, 0, 12, 12),
        ("gpu", 1, 0, 80, 1),
        ("gpu", 8, 0, 12, 1),
        ("gpu", 8, 3, 12, 3),
        ("cpu", 1, 99, 12, 12),
    ],
)
def test_layers_are_unrolled_on_one_gpu_or_as_is_asked(
    backend, devices, wanted, layers, found, monkeypatch
):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    assert compiling.unroll(wanted, layers) == found
