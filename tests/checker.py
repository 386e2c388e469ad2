"""The run-time type checker of the tests: beartype, with int accepted where float is asked for."""

from collections.abc import Callable

from beartype import BeartypeConf, beartype

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def typechecked(function: Callable) -> Callable:
    """Checks calls, but not how a container is built.

    JAX rebuilds containers around whatever it maps over: stacked, abstract or missing leaves.
    """
    return function if function.__name__ == "__init__" else _check(function)
