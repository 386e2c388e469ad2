"""What a curriculum costs beside training: programs compiled, waiting at stage changes, padding.

    python -m benchmarks.curriculum                   (the bundled model on NL2Bash)
    python -m benchmarks.curriculum --steps=2400      (stages as long as a real run's; nine minutes)

    python -m benchmarks.curriculum --steps=2400 --plan     (padding alone: nothing is trained)

A real run, read back from its own `metrics.jsonl` and `timings.jsonl`; without NL2Bash in --data it
is the company task. Every program is compiled anew. The first one can't be compiled beside any
training: what it costs is told apart, and doesn't count as a stage change.

How many pack widths a level gets depends on how long it is trained on, and padding on these: the
padding of a run of --long steps is told as well, by making its batches and training on none.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from benchmarks import measure
from benchmarks.results import Result, as_usual, save
from pintern import cli

STEPS = flags.DEFINE_integer("steps", 320, "Of the run; a multiple of 5 × --stages.", lower_bound=1)
LONG = flags.DEFINE_integer(
    "long", 2400, "Steps of the run whose padding is told besides.", lower_bound=1
)
STAGES = flags.DEFINE_integer(
    "stages", 4, "Levels from the full prompt to the query alone.", lower_bound=2
)
ROWS = flags.DEFINE_integer("rows", 4, "Of a step.", lower_bound=1)
PLAN = flags.DEFINE_boolean(
    "plan", False, "Pad each step's batch as a run would, and train nothing."
)
DATA = flags.DEFINE_string("data", "../shared/data/nl2bash", "Folder of all.nl and all.cm.")
STALL, PADDING = 0.05, 0.10
_EVERY = 5  # steps between two lines of a run's files; a stage is to end with one
flags.register_multi_flags_validator(
    ["steps", "stages"],
    lambda given: given["steps"] % (_EVERY * given["stages"]) == 0,
    f"--steps is to be a multiple of {_EVERY} × --stages.",
)
flags.register_multi_flags_validator(
    ["long", "stages"],
    lambda given: given["long"] >= given["stages"],
    "--long is to be at least --stages.",
)


class StageCost(NamedTuple):
    """What one stage took.

    Attributes:
      level: τ and shots.
      steps: how many.
      seconds: from its first step to its last.
      stall: seconds of them in which training waited for a program.
      tokens: real ones.
      slots: with padding.
      programs: compiled by its end, of all stages.
    """

    level: str
    steps: int
    seconds: float
    stall: float
    tokens: int
    slots: float
    programs: int


def main(_: list[str]) -> None:
    """Prints a line a stage, and the run as a whole."""
    import jax

    from pintern.assemble import assemble
    from pintern.training.loop import train

    jax.config.update("jax_enable_compilation_cache", False)
    print(measure.versions(), flush=True)
    config = run_config(STEPS.value)
    if PLAN.value:
        planned_padding(config)
        return
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        if not train(config, workdir):
            sys.exit("stopped before the end: there is nothing to tell")
        parts = assemble(config, prompts_directory=workdir / "prompts")
        stages, programs = stage_costs(workdir), shapes_of(parts)
    print(
        f"{'level':<12} {'steps':>6} {'s':>7} {'waited s':>9} {'share':>7} {'tokens/s':>9} "
        f"{'padding':>8} {'programs so far':>16}"
    )
    for stage in stages:
        print(
            f"{stage.level:<12} {stage.steps:>6} {stage.seconds:>7.1f} {stage.stall:>9.2f} "
            f"{stage.stall / stage.seconds:>7.1%} {stage.tokens / stage.seconds:>9.0f} "
            f"{1 - stage.tokens / stage.slots:>8.1%} {stage.programs:>16}"
        )
    padding = 1 - sum(s.tokens for s in stages) / sum(s.slots for s in stages)
    worst = max(stage.stall / stage.seconds for stage in stages[1:])
    compiled = stages[-1].programs
    print(
        f"{compiled} programs for {programs} shapes; the run began after {stages[0].stall:.1f} s; "
        f"longest wait at a stage change {worst:.1%} of the stage (at most {STALL:.0%}); "
        f"padding {padding:.1%} in all (at most {PADDING:.0%})"
    )
    print(f"A run of {LONG.value:,} steps:")
    planned = planned_padding(run_config(LONG.value))
    results = [
        Result("curriculum_programs", programs / compiled, compiled, None, programs, ""),
        Result("curriculum_stall", None, worst, None, None, "share of the stage"),
        Result("curriculum_padding", None, padding, None, None, "share of slots"),
        Result("curriculum_long_padding", None, planned, None, None, "share of slots"),
    ]
    if as_usual("steps", "long", "stages", "rows"):
        save(results, "cpu" if jax.default_backend() == "cpu" else "gpu")


def run_config(steps: int) -> Any:
    """Linear stages over NL2Bash, LoRA on every map of the bundled model."""
    from pintern.config import default_config, validate

    config = default_config()
    if (Path(DATA.value) / "all.nl").is_file():
        config.task.kind, config.task.data = "nl2bash", DATA.value
    config.curriculum.stages = STAGES.value
    config.train.update(steps=steps, batch_rows=ROWS.value, log_every=_EVERY)
    config.checkpoint.every = steps
    return validate(config)


def planned_padding(config: Any) -> float:
    """Share of the slots, prefix and rows, that a run's batches would pad; printed by level too."""
    from pintern.assemble import assemble
    from pintern.training.loop import load_data

    slots: dict[str, float] = {}
    padded: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        parts = assemble(config, prompts_directory=Path(folder))
        curriculum = parts.prompts.curriculum
        data = load_data(parts, Path(folder), None)
        for step in range(config.train.steps):
            level = curriculum.stages[curriculum.stage_at(step)].level
            shape, _, share = data.batch(step, level)
            size = shape.prefix + config.train.batch_rows // shape.packed * shape.pack
            name = level_name(level.keep_rate, level.shots)
            slots[name] = slots.get(name, 0.0) + size
            padded[name] = padded.get(name, 0.0) + share * size
        programs = shapes_of(parts)
    for name, size in slots.items():
        print(f"{name:<12} {padded[name] / size:>8.1%}")
    total = sum(padded.values()) / sum(slots.values())
    print(f"padding {total:.1%} in all (at most {PADDING:.0%}), with {programs} programs")
    return total


def level_name(keep_rate: float, shots: int) -> str:
    """As it is printed."""
    return f"τ={keep_rate:.2f} k={shots}"


def shapes_of(parts: Any) -> int:
    """Shapes of all levels together: what there is to compile."""
    from pintern.training.loop import load_data

    data = load_data(parts, Path(), None)
    shapes = [data.shapes(level).rising for level in parts.prompts.curriculum.levels]
    return len({shape for rising in shapes for shape in rising})


def stage_costs(workdir: Path) -> list[StageCost]:
    """Stage by stage, from the run's own files."""
    steps = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    timings = [json.loads(line) for line in (workdir / "timings.jsonl").read_text().splitlines()]
    found, waited = [], 0.0
    for level in dict.fromkeys((row["keep_rate"], row["shots"]) for row in steps):
        mine = [row for row in steps if (row["keep_rate"], row["shots"]) == level]
        first, last = mine[0]["step"], mine[-1]["step"]
        parts = [row for row in timings if first <= row["step"] <= last]
        slots = [row["tokens"] / (1 - row["padding"]) for row in mine]
        found.append(
            StageCost(
                level=level_name(*level),
                steps=len(mine),
                seconds=sum(row["seconds"] for row in parts),
                stall=parts[-1]["stall_seconds"] - waited,
                tokens=sum(row["tokens"] for row in mine),
                slots=sum(slots),
                programs=parts[-1]["compiled_programs"],
            )
        )
        waited = parts[-1]["stall_seconds"]
    return found


if __name__ == "__main__":
    cli.run(main)
