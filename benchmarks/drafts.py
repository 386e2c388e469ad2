"""What guessing ahead brings where requests are served one at a time.

    python -m benchmarks.drafts                              (GPT-2-124M shape; on a GPU Llama-1B)
    python -m benchmarks.drafts --workdir=runs/quickstart    (and the quickstart's arms)

The first table: milliseconds of a pass over the weights that reads one token, and of one that reads
guesses too. The second: requests of the company task to the base behind its prompt, and to the
internalised model, all of them with and without guesses, by turns. Answers are compared: guessing
changes none.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from absl import flags

from benchmarks import measure
from benchmarks.shared_models import (
    GPT2_124M,
    LLAMA_1B,
    TINY_GPT2,
    TINY_LLAMA,
    pintern_model,
    saved_model,
)
from pintern import cli
from pintern.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from pintern.evaluation.decode import Generator
    from pintern.prompts.rows import Row

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a quickstart that has been run.")
DRAFTS = flags.DEFINE_list("drafts", ["1", "3", "7"], "Tokens to guess at a time.")
flags.register_validator(
    "drafts",
    lambda given: given and all(each.isdigit() and int(each) > 0 for each in given),
    "Give whole numbers above 0.",
)
REQUESTS = flags.DEFINE_integer("requests", 40, "Requests of each arm.", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 5, "Timed runs of passes.", lower_bound=1)
TINY = flags.DEFINE_boolean("tiny", False, "A tiny model for the passes; means nothing.")
QUERY, NEW = 48, 32  # tokens


def main(_: list[str]) -> None:
    """Prints the tables; exits with 1 where an answer differs."""
    from rich.console import Console

    if WORKDIR.value and not (Path(WORKDIR.value) / "arms").is_dir():
        raise UserError(f"--workdir={WORKDIR.value} holds no quickstart.", "Run `make quickstart`.")
    console = Console(width=max(130, Console().width))
    print(measure.versions(), flush=True)
    console.print(passes())
    if WORKDIR.value:
        table, differ = arms(Path(WORKDIR.value))
        console.print(table)
        sys.exit(int(differ))


def drafts() -> list[int]:
    """Numbers of guesses to compare, none among them."""
    return [0, *(int(each) for each in DRAFTS.value)]


def serve(generator: Generator, row: list[int]) -> tuple[list[int], int, float]:
    """All tokens of one row, passes behind the first of them, and seconds that these took."""
    import jax

    keys = jax.random.split(jax.random.key(0), (1, 1))
    places = jax.block_until_ready(generator.begin(generator.read([row]), keys))
    began = time.perf_counter()
    places = jax.block_until_ready(generator.advance(places, 1))
    took = time.perf_counter() - began
    return np.asarray(places.made[0, 0]).tolist(), int(places.clock), took


def passes() -> Table:
    """Milliseconds of a pass, by the tokens that it reads."""
    import jax
    from flax import nnx
    from rich.table import Table

    from pintern.evaluation.decode import Generator
    from pintern.evaluation.sampling import Sampling
    from pintern.evaluation.unroll import unrolled

    on_gpu = jax.default_backend() != "cpu"
    tiny, full = (TINY_LLAMA, LLAMA_1B) if on_gpu else (TINY_GPT2, GPT2_124M)
    dtype = "bfloat16" if on_gpu else "float32"
    with saved_model(tiny if TINY.value else full, dtype=dtype) as folder:
        checkpoint = pintern_model(folder, dtype=dtype)
    vocab = checkpoint.config.vocab_size
    split = unrolled(*nnx.split(checkpoint.decoder))
    row = np.random.default_rng(0).integers(0, vocab, QUERY).tolist()
    generators = [
        Generator(*split, None, (), Sampling(NEW, vocab, draft_tokens=count)) for count in drafts()
    ]
    times: list[list[float]] = [[] for _ in generators]
    for turn in range(REPEATS.value + 1):
        for found, generator in zip(times, generators, strict=True):
            _, count, took = serve(generator, row)
            if turn:  # the first one compiles
                found.append(took / count)
    table = Table("tokens read", box=None, pad_edge=False)
    for head in ("ms a pass", "beside one"):
        table.add_column(head, justify="right")
    medians = [float(np.median(found)) for found in times]
    for count, median in zip(drafts(), medians, strict=True):
        table.add_row(f"{1 + count}", f"{1e3 * median:.2f}", f"{median / medians[0]:.2f}×")
    return table


def arms(workdir: Path) -> tuple[Table, bool]:
    """Latency of three arms with and without guesses; and whether any answer differs."""
    from rich.table import Table

    from experiments.company.arms import CACHED, FULL, OURS
    from pintern.evaluation.latency import measure_latency

    served = {
        (name, count): made
        for name, of in ((FULL, FULL), (CACHED, FULL), (OURS, OURS))
        for count, made in generators_of(workdir, of, cached=name != FULL).items()
    }
    requests = min(REQUESTS.value, *(len(rows) for _, rows in served.values()))
    latency = measure_latency(served, requests=requests)
    table = Table(box=None, pad_edge=False)
    table.add_column("arm", no_wrap=True)
    for head in (
        "guesses",
        "tokens a pass",
        "equal answers",
        "prefill ms",
        "decode ms",
        "total ms",
        "vs full",
        "vs cached",
    ):
        table.add_column(head, justify="right")
    differ = False
    for (name, count), (generator, rows) in served.items():
        plain, _ = served[name, 0]
        found = [
            (serve(generator, row.tokens), serve(plain, row.tokens)) for row in rows[:requests]
        ]
        equal = sum(mine[0] == other[0] for mine, other in found)
        differ |= equal < requests
        tokens = sum(other[1] for _, other in found) / sum(mine[1] for mine, _ in found)
        its = latency[name, count]
        table.add_row(
            name,
            str(count),
            f"{tokens:.2f}",
            f"{equal} of {requests}",
            f"{1e3 * its.prefill_p50:.1f}",
            f"{1e3 * its.decode_p50:.1f}",
            f"{1e3 * its.total_p50:.1f}",
            *(
                f"{latency[other, count].total_p50 / its.total_p50:.2f}×"
                for other in (FULL, CACHED)
            ),
        )
    return table, differ


def generators_of(
    workdir: Path, name: str, *, cached: bool
) -> dict[int, tuple[Generator, list[Row]]]:
    """Of an arm of the quickstart, by the number of guesses: generator and test rows.

    Raises:
      UserError: the folder holds no quickstart that has been run.
    """
    from experiments.company.arms import company_arms
    from pintern.evaluation.run import make_generator, test_rows
    from pintern.training.restore import restore_run
    from pintern.training.workdir import read_config

    (arm,) = (each for each in company_arms(seed=0) if each.name == name)
    folder = workdir / "arms" / arm.folder
    parts, adapter, _ = restore_run(folder, read_config(folder))
    prompt = dataclasses.replace(arm.prompt, cached=cached)
    rows = test_rows(parts, prompt)
    return {
        count: (make_generator(parts, adapter, prompt, draft_tokens=count), rows)
        for count in drafts()
    }


if __name__ == "__main__":
    cli.run(main)
