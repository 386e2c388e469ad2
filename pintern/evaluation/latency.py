"""Latency of single requests, prefill and decode apart, all arms side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import jax
import numpy as np

from pintern.evaluation.decode import Generator
from pintern.prompts.rows import Row
from pintern.report.accounting import Latency

_KEY = 0
_BLOCK = 10  # requests that an arm serves before the next one's turn


def measure_latency(
    arms: Mapping[str, tuple[Generator, list[Row]]],
    *,
    requests: int,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Latency]:
    """Serves the same requests to every arm in turn, one at a time.

    The arms take turns in blocks of requests, so that whatever else the machine does hits all of
    them alike, while each finds its own weights in the processor's cache as a server would. Every
    program is run once before it is timed. Times are wall-clock seconds until the result is on the
    host.

    Args:
      arms: name to a generator and its rows, the same queries in the same order.
      requests: how many of the rows are served.
      progress: told how many requests (over all arms) are done.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for timed in (False, True):
        for first in range(0, requests, _BLOCK):
            for name, (generator, rows) in arms.items():
                block = rows[first : min(first + _BLOCK, requests)]
                measured = [_serve(generator, row) for row in block]
                if timed:
                    times[name] += measured
                if progress:
                    progress(len(block))
    return {name: _percentiles(np.asarray(found)) for name, found in times.items()}


def _serve(generator: Generator, row: Row) -> tuple[float, float]:
    keys = jax.random.split(jax.random.key(_KEY), (1, 1))
    began = time.perf_counter()
    read = jax.block_until_ready(generator.read([row.tokens]))
    middle = time.perf_counter()
    np.asarray(generator.advance(generator.begin(read, keys), 1).made)
    return middle - began, time.perf_counter() - middle


def _percentiles(times: np.ndarray) -> Latency:
    columns = {"prefill": times[:, 0], "decode": times[:, 1], "total": times.sum(1)}
    return Latency(
        **{
            f"{name}_p{percent}": float(np.percentile(column, percent))
            for name, column in columns.items()
            for percent in (50, 90)
        }
    )
