"""Compiled training steps, one per shape; the next levels' are compiled while this one trains."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from pintern import compiling

AHEAD = 2  # stages; with one, a short stage would be over before the next one's programs are there


class Programs:
    """Programs by key, compiled ahead of time in one background thread.

    Attributes:
      count: programs compiled so far.
      compile_seconds: time that compiling took, most of it beside training.
      stall_seconds: time that training waited for a program.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        donate: tuple[int, ...] = (),
        out_shardings: Any = None,
    ):
        self._jitted = jax.jit(
            function,
            donate_argnums=donate,
            out_shardings=out_shardings,
            compiler_options=compiling.options(compiling.STEP),
        )
        self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="compile")
        self._programs: dict[Hashable, concurrent.futures.Future] = {}
        self.count = 0
        self.compile_seconds = 0.0
        self.stall_seconds = 0.0

    def prepare(self, key: Hashable, *abstract: Any) -> None:
        """Starts compiling for these (abstract) arguments, unless it was started before."""
        if key not in self._programs:
            self._programs[key] = self._pool.submit(self._compile, abstract)

    def get(self, key: Hashable) -> Callable[..., Any]:
        """The program for a prepared key; waits for it if need be.

        Raises:
          KeyError: it wasn't prepared, or has been forgotten.
        """
        began = time.perf_counter()
        program = self._programs[key].result()
        self.stall_seconds += time.perf_counter() - began
        return program

    def keep(self, keys: Iterable[Hashable]) -> None:
        """Forgets all others, so that a run of many levels doesn't collect their programs.

        On a CPU one is megabytes, and hundreds of memory maps of the 65,530 that Linux allows a
        process.
        """
        forgotten = self._programs.keys() - set(keys)
        if not forgotten:
            return
        for key in forgotten:
            self._programs.pop(key).cancel()
        # JAX's cache holds them too. It is the compiling thread's: nothing is traced meanwhile.
        self._pool.submit(self._jitted.clear_cache)

    def close(self) -> None:
        """Drops what is not compiled yet."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _compile(self, abstract: tuple[Any, ...]) -> Callable[..., Any]:
        began = time.perf_counter()
        program = self._jitted.lower(*abstract).compile()
        self.compile_seconds += time.perf_counter() - began
        self.count += 1
        return program


def abstract(tree: Any) -> Any:
    """Shapes, dtypes and places of a tree of arrays and numbers (a cache's length is one)."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            jnp.shape(x),
            jnp.result_type(x),
            sharding=x.sharding if isinstance(x, jax.Array) and x.committed else None,
        ),
        tree,
    )
