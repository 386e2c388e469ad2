"""What XLA's options, and the forms of `models.alone`, make of a token's time on one GPU.

    python -m benchmarks.tokens_gpu
    JAX_PLATFORMS=cpu python -m benchmarks.tokens_gpu --tiny     (tries the script out on a CPU)

Llama-1B's shape, random weights in bfloat16; rows of 48 tokens, 128 new ones each, in the engine's
own loop. Variants are compiled first, and then timed by turns; all of them are to choose the same
tokens, but for near ties. What is best here belongs into `compiling.LOOP`. The floor is the time to
read the weights once.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from benchmarks import measure
from benchmarks.shared_models import LLAMA_1B, TINY_LLAMA, pintern_model, saved_model
from pintern import cli
from pintern.errors import UserError

ROWS = flags.DEFINE_list("rows", ["1", "64"], "Rows at once.")
flags.register_validator(
    "rows",
    lambda given: given and all(each.isdigit() and int(each) > 0 for each in given),
    "Give whole numbers above 0.",
)
REPEATS = flags.DEFINE_integer("repeats", 5, "Timed runs of each variant.", lower_bound=1)
TINY = flags.DEFINE_boolean("tiny", False, "A tiny model in float32; means nothing.")
PROMPT, NEW = 48, 128  # tokens

_MODE = "xla_gpu_command_buffer_scheduling_mode"


class Variant(NamedTuple):
    """How the loop over tokens is compiled.

    Attributes:
      options: of XLA, beside those of `compiling.LOOP`; None leaves these out too.
      joined: whether a token alone gets the forms of `models.alone`.
    """

    options: Mapping[str, Any] | None
    joined: bool = True


VARIANTS = {
    "pintern's": Variant({}),
    "usual forms": Variant({}, joined=False),
    "graph as data flows": Variant({_MODE: "CONCURRENT"}),
    "graph by regions": Variant({_MODE: "CONCURRENT_REGIONS"}),
    "graph one by one": Variant({_MODE: "SERIALIZE"}),
    "dependent launches": Variant({"xla_gpu_enable_pdl": True, "xla_gpu_enable_pdl_launch": True}),
    "XLA's defaults": Variant(None),
}


def main(_: list[str]) -> None:
    """Prints a table for each number of rows."""
    import jax
    from flax import nnx

    from pintern.evaluation.unroll import unrolled
    from pintern.models.split import SplitDecoder

    on_gpu = jax.default_backend() == "gpu"
    if not on_gpu and not TINY.value:
        raise UserError(
            "benchmarks.tokens_gpu needs an NVIDIA GPU, and JAX finds none.",
            "--tiny tries the script out elsewhere.",
        )
    print(measure.versions(), flush=True)
    band = measure.bandwidth()
    dtype = "float32" if TINY.value else "bfloat16"
    with saved_model(TINY_LLAMA if TINY.value else LLAMA_1B, dtype=dtype) as folder:
        decoder = pintern_model(folder, dtype=dtype).decoder
    floor = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(decoder))) / band.value
    base = SplitDecoder.of(*unrolled(*nnx.split(decoder)))
    names = list(VARIANTS) if on_gpu else ["pintern's", "usual forms"]  # the others are a GPU's
    for rows in map(int, ROWS.value):
        runs, tokens = {}, {}
        for name in names:
            try:
                run = run_of(base, rows, VARIANTS[name])
                tokens[name], took = run()
            except jax.errors.JaxRuntimeError as error:  # experimental, some of them
                print(f"{rows} rows, {name}: fails: {str(error).splitlines()[0]}", flush=True)
                continue
            runs[name] = run
            print(
                f"{rows} rows, {name}: compiled; {1e3 * took:.3f} ms a token at first", flush=True
            )
        if "pintern's" in runs:
            _show(rows, timed(runs), tokens, floor)


def run_of(base: Any, rows: int, variant: Variant) -> Callable[[], tuple[np.ndarray, float]]:
    """What chooses the tokens of so many rows: them, and the seconds that each took."""
    import jax

    from pintern import compiling
    from pintern.evaluation import engine
    from pintern.evaluation.places import begin
    from pintern.evaluation.sampling import Sampling

    vocab = base.merge().config.vocab_size
    sampling = Sampling(NEW, vocab)  # an id that isn't there: no row ends early
    prompt = np.random.default_rng(0).integers(0, vocab, (1, rows, PROMPT)).astype(np.int32)
    prefilled = engine.read_prefix(base, None, np.zeros((1, 0), np.int32))
    read = engine.read_rows(base, None, prefilled, prompt, np.ones_like(prompt))
    options = None if variant.options is None else {**compiling.LOOP, **variant.options}
    with _forms(joined=variant.joined):
        places = begin(sampling, prefilled, read, jax.random.split(jax.random.key(0), (1, rows)))
        known = np.zeros(0, np.int32)
        arguments = base, None, places, known, rows, NEW
        program = (
            jax.jit(
                engine.advance.__wrapped__,
                static_argnums=0,
                donate_argnums=3,
                compiler_options=compiling.options(options or {}),
            )
            .lower(sampling, *arguments)
            .compile()
        )

    def run() -> tuple[np.ndarray, float]:
        keys = jax.random.split(jax.random.key(0), (1, rows))
        places = jax.block_until_ready(begin(sampling, prefilled, read, keys))
        began = time.perf_counter()
        done = jax.block_until_ready(program(base, None, places, known, rows, NEW))
        took = time.perf_counter() - began
        return np.asarray(done.made[0]), took / (NEW - 1)  # the first one came of reading

    return run


@contextlib.contextmanager
def _forms(*, joined: bool) -> Iterator[None]:
    """Within it, whether programs that are traced take the forms of `models.alone`."""
    from pintern.models import alone

    kept = alone.is_alone
    alone.is_alone = (lambda *batch: math.prod(batch) == 1) if joined else (lambda *batch: False)
    try:
        yield
    finally:
        alone.is_alone = kept


def timed(
    runs: Mapping[str, Callable[[], tuple[np.ndarray, float]]],
) -> dict[str, list[float]]:
    """Seconds a token of each run, by turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(REPEATS.value):
        for name, run in runs.items():
            times[name].append(run()[1])
    return times


def _show(
    rows: int, times: Mapping[str, list[float]], tokens: Mapping[str, np.ndarray], floor: float
) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("variant", box=None, pad_edge=False, title=f"{rows} rows", title_justify="left")
    for head in ("ms a token", "beside pintern's", "of floor", "equal tokens"):
        table.add_column(head, justify="right")
    own = float(np.median(times["pintern's"]))
    for name, found in times.items():
        median = float(np.median(found))
        equal = (tokens[name] == tokens["pintern's"]).mean()
        table.add_row(
            name,
            f"{1e3 * median:.3f}",
            f"{own / median:.2f}×",
            f"{floor / median:.0%}",
            f"{equal:.1%}",
        )
    Console(width=max(100, Console().width)).print(table)


if __name__ == "__main__":
    cli.run(main)
