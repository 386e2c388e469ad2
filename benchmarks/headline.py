"""What internalising a prompt saves: the full prompt, the same behind a cached prefix, the query.

Each arm answers one request alone (latency), and a queue of them several at a time, as a server
does (throughput). Random weights: speed doesn't depend on them, and every completion has the same
length. A part of `python -m benchmarks.decoding`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from benchmarks import measure
from benchmarks.results import Result

TARGET = 4.2  # of the full prompt without a cache; PromptIntern, arXiv 2407.02211
QUERY, NEW = 48, 16  # tokens
_TURNS = 5


class Sizes(NamedTuple):
    """Tokens of the template, requests of the queue, and how many are served at a time."""

    template: int
    requests: int
    batch: int


class Arm(NamedTuple):
    """What was measured of one arm; seconds.

    Attributes:
      prompt: tokens.
      first: until the first token, of one request alone.
      whole: until the last.
      served: per request of the queue.
      cost: USD per 1,000 requests at `PriceList`'s prices.
    """

    prompt: int
    first: float
    whole: float
    served: float
    cost: float


def headline(split: tuple, vocab: int, *, on_gpu: bool) -> list[Result]:
    """Prints the table; the results are internalised beside the other two, served and alone.

    Args:
      split: the decoder, as `nnx.split` gives it.
      vocab: its number of ids.
      on_gpu: whose sizes and names to take.
    """
    sizes = Sizes(1792, 128, 64) if on_gpu else Sizes(448, 32, 16)
    full, cached, internalised = arms = measured(split, vocab, sizes)
    show(
        dict(zip(("full prompt", "full prompt, cached", "internalised"), arms, strict=True)), sizes
    )
    end = "_gpu" if on_gpu else ""
    pairs = {
        f"headline_uncached{end}": (internalised.served, full.served),
        f"headline_cached{end}": (internalised.served, cached.served),
        f"headline_alone_uncached{end}": (internalised.whole, full.whole),
        f"headline_alone_cached{end}": (internalised.whole, cached.whole),
    }
    return [
        Result(name, other / ours, ours, other, None, "s a request")
        for name, (ours, other) in pairs.items()
    ]


def measured(split: tuple, vocab: int, sizes: Sizes) -> list[Arm]:
    """The three arms; one request alone by turns, the queues one after another."""
    import jax

    from pintern.evaluation.decode import Generator
    from pintern.evaluation.sampling import Sampling
    from pintern.report.accounting import PriceList, TokenCount, cost_per_request

    rng = np.random.default_rng(0)
    prefix = rng.integers(0, vocab, sizes.template).tolist()
    rows = rng.integers(0, vocab, (sizes.requests, QUERY)).tolist()
    sampling = Sampling(NEW, vocab)  # no id ends a completion
    generators = [
        Generator(*split, None, prefix, sampling, cached=False),
        Generator(*split, None, prefix, sampling),
        Generator(*split, None, (), sampling),
    ]
    alone: list[list[tuple[float, float]]] = [[] for _ in generators]
    for turn in range(_TURNS + 1):
        for times, generator in zip(alone, generators, strict=True):
            first = measure.spent(lambda g=generator: jax.block_until_ready(g.read(rows[:1])))
            whole = measure.spent(lambda g=generator: g(rows[:1], batch_rows=1))
            if turn:  # the first one compiles
                times.append((first[0], whole[0]))
    found = []
    for number, (times, generator) in enumerate(zip(alone, generators, strict=True)):
        generator.warm(rows, batch_rows=sizes.batch)
        queue = measure.spent(lambda g=generator: g(rows, batch_rows=sizes.batch))[0]
        template = 0 if number == 2 else sizes.template
        count = TokenCount(template=template, examples=0, query=QUERY, output=NEW)
        cost = 1000 * cost_per_request(count, PriceList(), cached_prefix=number == 1)
        medians = np.median(times, axis=0)
        found.append(Arm(template + QUERY, *medians, queue / sizes.requests, cost))
    return found


def show(arms: dict[str, Arm], sizes: Sizes) -> None:
    """Prints them, each beside the first."""
    from rich.console import Console
    from rich.table import Table

    table = Table("arm", box=None, pad_edge=False)
    heads = "prompt tokens,first token ms,whole ms,speed,requests/s,speed,USD per 1 000"
    for head in heads.split(","):
        table.add_column(head, justify="right")
    base = next(iter(arms.values()))
    for name, arm in arms.items():
        table.add_row(
            name,
            f"{arm.prompt:,}",
            f"{1e3 * arm.first:.1f}",
            f"{1e3 * arm.whole:.1f}",
            f"{base.whole / arm.whole:.2f}×",
            f"{1 / arm.served:.2f}",
            f"{base.served / arm.served:.2f}×",
            f"{arm.cost:.3f}",
        )
    print(f"{NEW} new tokens; ms of one request alone, requests/s with {sizes.batch} at once")
    Console(width=max(110, Console().width)).print(table)
