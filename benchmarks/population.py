"""A population beside the same runs one after another: members × throughput.

    python -m benchmarks.population                            (the bundled model, prompt tuning)
    python -m benchmarks.population --lora --members=1,2,4

Both make the same optimizer steps on the company task, each member in its own data order. The
population is one program, compiled once for all its members; a run alone compiles its own, as a
sweep of separate processes does without the persistent cache (JAX's caches are cleared before
each). `gain` is the time of N runs one after another over that of N members at once: of the steps
alone, and with compiling, at --steps. One run alone is timed, and counted N times. The two step by
turns and times are medians, so that what else the machine does meets both alike. Before that, each
member's first step is compared with that of a run of its own; the last column is the largest
difference in loss, gradients and adapter.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import measure
from benchmarks.results import Record, Result, UnequalError, as_usual
from benchmarks.training_sides import difference
from pintern import cli, compiling

MEMBERS = flags.DEFINE_list("members", ["1", "8"], "How many at once.")
flags.register_validator(
    "members",
    lambda counts: counts and all(count.isdecimal() and int(count) > 0 for count in counts),
    "Expected whole numbers above 0, such as --members=1,8.",
)
LORA = flags.DEFINE_boolean("lora", False, "LoRA on every map in place of a soft prompt.")
MODEL = flags.DEFINE_string("model", "nano", "A checkpoint: a folder, org/name, or nano.")
ROWS = flags.DEFINE_integer("rows", 4, "Rows of a member's step.", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 5, "Timed steps of each.", lower_bound=1)
STEPS = flags.DEFINE_integer(
    "steps", 300, "Steps of the run that compiling is spread over.", lower_bound=1
)
# Eight seeds of prompt tuning: no slower than one after another; on a GPU several times faster.
TARGETS = {"cpu": 1.0, "gpu": 4.0}
# Of a first step, by each array's norm; a GPU multiplies float32 in TF32.
TOLERANCE = {"cpu": 1e-4, "gpu": 2e-2}


def main(_: list[str]) -> None:
    """Prints one table."""
    # What compiling costs is part of what is measured.
    jax.config.update("jax_enable_compilation_cache", False)
    counts = [int(count) for count in MEMBERS.value]
    print(measure.versions())
    backend = "cpu" if jax.default_backend() == "cpu" else "gpu"
    record = Record(backend if as_usual("model", "rows") else None)
    trained = "LoRA, rank 16" if LORA.value else "25 virtual tokens"
    print(f"{trained}, {ROWS.value} rows a step, medians of {REPEATS.value} steps")
    print(
        f"{'members':>7} {'compiled':>9} {'compile s':>16} {'step ms':>16} {'tokens/s':>16} "
        f"{'gain':>5} {'with compiling':>14} {'difference':>10}\n"
        f"{'':>7} {'':>9} {'at once / apart':>16} {'at once / apart':>16} {'at once / apart':>16}",
        flush=True,
    )
    bench = Bench(max(counts))
    alone = bench.compile_alone()
    for count in counts:
        name = f"population_{count}_{'lora' if LORA.value else 'prompt_tuning'}"
        with record.case(name) as found:
            found += measured(name, bench, alone, count, TOLERANCE[backend])
    record.finish({"population_8_prompt_tuning": TARGETS[backend]})


def measured(name: str, bench: Bench, alone: Compiled, count: int, limit: float) -> list[Result]:
    """Time and memory of so many members, where they equal runs alone; prints the table's line."""
    together = bench.compile_together(count)
    apart_by = bench.compare(together, alone, count, limit)
    once, one = bench.time_by_turns(together, alone)
    tokens, apart = bench.tokens(count), count * one
    compiling = {"together": together.seconds, "apart": count * alone.seconds}
    with_compiling = (STEPS.value * apart + compiling["apart"]) / (
        STEPS.value * once + compiling["together"]
    )
    steps = {"together": 1e3 * once, "apart": 1e3 * apart}
    speed = {"together": tokens / once, "apart": tokens / apart}
    print(
        f"{count:>7} {f'1 / {count}':>9} {_pair(compiling, '.1f'):>16} "
        f"{_pair(steps, '.1f'):>16} {_pair(speed, '.0f'):>16} "
        f"{apart / once:>4.2f}× {with_compiling:>13.2f}× {apart_by:>10.1e}",
        flush=True,
    )
    memory = together.megabytes, alone.megabytes
    return [
        Result(name, apart / once, once, apart, None, "s"),
        Result(f"{name}_memory", memory[1] / memory[0], *memory, None, "MB"),
    ]


def _pair(values: dict[str, float], form: str) -> str:
    return f"{values['together']:{form}} / {values['apart']:{form}}"


class Compiled:
    """A program with its arguments, and what compiling it cost."""

    def __init__(self, function: Callable[..., Any], state: Any, *rest: Any):
        jax.clear_caches()
        began = time.perf_counter()
        options = compiling.options(compiling.STEP)
        jitted = jax.jit(function, donate_argnums=0, compiler_options=options)
        self._program = jitted.lower(state, *rest).compile()
        self.seconds = time.perf_counter() - began
        analysis = self._program.memory_analysis()
        self.megabytes = 1e-6 * (analysis.argument_size_in_bytes + analysis.temp_size_in_bytes)
        self._first, self._rest = state, rest
        self._state, _ = self.first_step(*rest)

    def first_step(self, *rest: Any) -> tuple[Any, dict[str, Any]]:
        """State and metrics after it; with data and keys of the compiled shapes."""
        state = jax.tree.map(jnp.copy, self._first)  # the program takes it
        return jax.block_until_ready(self._program(state, *rest))

    def step(self) -> float:
        """Seconds of one step."""
        began = time.perf_counter()
        self._state, _ = jax.block_until_ready(self._program(self._state, *self._rest))
        return time.perf_counter() - began


class Bench:
    """Base, data and states of as many members as are needed at most."""

    def __init__(self, count: int):
        from pintern.assemble import assemble, load_base, new_adapter, split_decoder
        from pintern.config import default_config
        from pintern.training.data import TrainingData
        from pintern.training.stacking import PopulationData
        from pintern.training.step import TrainState, make_optimizer

        config = default_config()
        config.model.path = MODEL.value
        config.train.batch_rows = ROWS.value
        config.curriculum.update(schedule="explicit", keep_rates=(0.0,), shots=(0,))
        if not LORA.value:
            config.adapter.targets, config.adapter.soft_prompt = (), 25
        self.config, parts = config, assemble(config, base=load_base(config, attention="xla"))
        self.graph, self.base = split_decoder(parts.checkpoint)
        self.optimizer = make_optimizer(config.train)
        adapter = new_adapter(parts)
        self.state = TrainState(adapter, self.optimizer.init(adapter))
        data = [
            TrainingData(parts.prompts, batch_rows=ROWS.value, accumulate=1, seed=seed)
            for seed in range(count)
        ]
        # Of one shape, so that both do the same work.
        _, self.batches = PopulationData(data).batch(0, parts.prompts.curriculum.levels[0])

    def compile_together(self, count: int) -> Compiled:
        """The step of so many members at once."""
        from pintern.training.stacking import make_population_step, stack

        step = make_population_step(self.graph, self.config, own_teachers=False)
        return Compiled(step, stack([self.state] * count), *self._members(count))

    def compile_alone(self) -> Compiled:
        """The step of an ordinary run."""
        from pintern.training.step import loss_options, make_step

        step = make_step(self.graph, self.optimizer, **loss_options(self.config))
        return Compiled(step, self.state, *self._member(0))

    def _members(self, count: int) -> tuple[Any, ...]:
        """What the step of so many takes besides their states."""
        from pintern.training.stacking import rates_of, stack

        keys = stack([jax.random.key(seed) for seed in range(count)])
        rates = rates_of([self.config] * count)
        return self.base, stack(self.batches[:count]), None, keys, rates

    def _member(self, number: int) -> tuple[Any, ...]:
        """What the step of a run alone takes besides its state."""
        return self.base, self.batches[number], None, jax.random.key(number)

    def compare(self, together: Compiled, alone: Compiled, count: int, limit: float) -> float:
        """How far loss, gradients and adapters of the members' first step are from those of runs
        alone: of an array, in shares of its norm, at most.

        Raises:
          UnequalError: by more than `limit`.
        """
        from pintern.training.stacking import unstack

        members = unstack(together.first_step(*self._members(count)), count)
        apart = []
        for number, member in enumerate(members):
            own = alone.first_step(*self._member(number))
            pairs = zip(jax.tree.leaves(member), jax.tree.leaves(own), strict=True)
            # What is zero on both sides (the gradient of LoRA's A) has no norm to compare by.
            there = [(a, b) for a, b in jax.device_get(list(pairs)) if np.any(a) or np.any(b)]
            apart.append(difference(*zip(*there, strict=True)))
        most = float(np.max(apart))  # NumPy's, because Python's passes over NaN
        if not most <= limit:
            raise UnequalError(f"members differ from runs alone by {most:.1e} of an array's norm")
        return most

    def time_by_turns(self, together: Compiled, alone: Compiled) -> tuple[float, float]:
        """Median seconds of a step of each."""
        times = [(together.step(), alone.step()) for _ in range(REPEATS.value)]
        once, one = np.median(times, axis=0)
        return float(once), float(one)

    def tokens(self, count: int) -> int:
        """Real tokens of a step of so many members."""
        each = [batch.student for batch in self.batches[:count]]
        return sum(b.real_tokens for b in each)


if __name__ == "__main__":
    cli.run(main)
