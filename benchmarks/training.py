"""Time and peak memory of training beside Hugging Face PEFT on PyTorch, on a CPU.

    python -m benchmarks.training
    python -m benchmarks.training --cases=train_plain --repeats=7
    python -m benchmarks.training --tiny                 (tries the script out; means nothing)

GPT-2-124M's shape in float32, random weights that both sides share. Each side lives in a process of
its own, and they work by turns. The first step is made on the same rows: loss and gradients are
compared, peak memory is noted; where it is all there is to a case, it counts as the first timed
run. What is timed is a whole optimizer step: from NumPy batches to the new adapter, clipping and
AdamW included. The floor is what our rows need at the machine's measured matrix rate, without
padding.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from benchmarks import measure, training_cases
from benchmarks.results import Record, Result, UnequalError
from benchmarks.shared_models import GPT2_124M, TINY_GPT2, pintern_model, saved_model
from benchmarks.training_cases import RANK, Case, Work
from benchmarks.training_sides import Ours, Peer, difference, write_adapter
from pintern import cli

NAMES = ("train_recurrent_8", "train_recurrent_32", "train_plain", "train_soft_prompt")
CASES = flags.DEFINE_list("cases", list(NAMES), "Which of them.")
REPEATS = flags.DEFINE_integer(
    "repeats", 0, "Timed runs of each side; 0 is each case's own.", lower_bound=0
)
TINY = flags.DEFINE_boolean("tiny", False, "Tiny model and rows.")
DATA = flags.DEFINE_string("data", "../shared/data", "Folder with NL2Bash and GPT-2's tokenizer.")
flags.register_validator(
    "cases",
    lambda names: names and set(names) <= set(NAMES),
    f"The cases are {', '.join(NAMES)}.",
)
SIDE = flags.DEFINE_enum("side", None, ["ours", "peer"], "One side alone; what a process does.")
FOLDER = flags.DEFINE_string("folder", None, "Of the model and the case; with --side.")
# Of float32 sums in another order: relative, over each tensor's norm.
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-3


def main(_: list[str]) -> None:
    """Prints the table; exits with 1 where the sides don't compute the same."""
    if SIDE.value:
        folder = Path(FOLDER.value)
        measure.serve(one_side(folder, pickle.loads((folder / "case").read_bytes())))
        return
    rate, band = measure.matrix_rate(), measure.bandwidth()
    print(measure.versions(), measure.floors_line(rate, band), sep="\n", flush=True)
    record, targets = Record(None if TINY.value else "cpu"), {}
    with saved_model(TINY_GPT2 if TINY.value else GPT2_124M) as folder:
        for name in CASES.value:
            with record.case(name) as found:
                case = case_of(name)
                targets[name] = case.target
                found += measured(folder, case, rate)
    record.finish(targets)


def case_of(name: str) -> Case:
    """The case of a name, at the shape in use."""
    vocab = (TINY_GPT2 if TINY.value else GPT2_124M)["vocab_size"]
    sizes = (24, 6, 2) if TINY.value else (448, 48, 16)
    match name:
        case "train_recurrent_8":
            return training_cases.recurrent(8, 6.0, vocab, sizes=sizes)
        case "train_recurrent_32":
            return training_cases.recurrent(32, 8.0, vocab, sizes=sizes)
        case "train_plain":
            return training_cases.plain(1.5, vocab, data=Path(DATA.value), rows=8)
        case "train_soft_prompt":
            virtual = 10 if TINY.value else 100
            return training_cases.soft_prompt(3.0, vocab, virtual=virtual, rows=8, sizes=(24, 8))
    raise ValueError(f"{name!r} is none of {', '.join(NAMES)}")


def measured(folder: Path, case: Case, rate: measure.Rate) -> list[Result]:
    """Time and memory, where both sides compute the same."""
    write_adapter(folder, case)
    (folder / "case").write_bytes(pickle.dumps(case))
    with process("ours", folder) as ours, process("peer", folder) as peer:
        checks = [side.ask("check") for side in (ours, peer)]
        compare(folder, case, checks)
        time = timed(case, ours, peer, checks, rate)
    mine, other = (check["peak_mb"] for check in checks)
    return [time, Result(f"{case.name}_memory", other / mine, mine, other, None, "MB")]


def process(side: str, folder: Path) -> measure.Side:
    """One side in a process of its own."""
    return measure.Side("benchmarks.training", f"--side={side}", f"--folder={folder}")


def one_side(folder: Path, case: Case) -> dict[str, Callable[[], dict[str, Any]]]:
    """What a side's process answers.

    `check` makes the first step and leaves its gradients in a file; `run` makes all of the case's.
    Both tell the time that they took, as `measure.spent`.
    """
    adapter = folder / f"adapter-{case.virtual}"
    if SIDE.value == "ours":
        import jax

        # Programs are compiled, not read back: what compiling costs is told.
        jax.config.update("jax_enable_compilation_cache", False)
        side = Ours(folder, adapter)
        first, steps = [case.checked_batch()], case.our_batches()
        side.compile([*first, *steps])
        gradients = side.gradients
    else:
        side = Peer(folder, adapter, threads=measure.cores())
        steps = case.peer_batches()
        first = steps[:1]

        def gradients() -> list[np.ndarray]:
            return side.converted_gradients(pintern_model(folder), folder / "gradients")

    def check() -> dict[str, Any]:
        spent = measure.spent(lambda: side.run(first))
        peak = measure.peak_mb()  # before anything is converted
        np.savez(folder / f"{case.name}-{SIDE.value}.npz", *gradients())
        return {"spent": spent, "peak_mb": peak, "loss": side.loss}

    def run() -> dict[str, Any]:
        return {"spent": measure.spent(lambda: side.run(steps))}

    def facts() -> dict[str, Any]:
        work = Work.of(side.checkpoint.decoder, 0 if case.virtual else RANK)
        return {
            "flops": [case.flops(work), case.peer_flops(work)],
            "programs": side.programs,
            "compile_seconds": side.compile_seconds,
        }

    return {"check": check, "run": run, "facts": facts}


def compare(folder: Path, case: Case, checks: list[dict[str, Any]]) -> None:
    """Prints how far loss and gradients are apart.

    Raises:
      UnequalError: further than rounding explains.
    """
    sides = []
    for side in ("ours", "peer"):
        with np.load(folder / f"{case.name}-{side}.npz") as file:
            sides.append([file[name] for name in file.files])
    gradients = difference(*sides)
    ours, peer = (check["loss"] for check in checks)
    agree = abs(ours - peer) <= LOSS_TOLERANCE * peer and gradients <= GRADIENT_TOLERANCE
    print(
        f"{case.name}: loss {ours:.6f} beside {peer:.6f}; gradients of {len(sides[0])} tensors "
        f"differ by {gradients:.1e} at most: {'equal' if agree else 'NOT EQUAL'}",
        flush=True,
    )
    if not agree:
        raise UnequalError("loss or gradients are not the peer's")


def timed(
    case: Case,
    ours: measure.Side,
    peer: measure.Side,
    checks: list[dict[str, Any]],
    rate: measure.Rate,
) -> Result:
    """Both sides by turns."""
    times = [[check["spent"] for check in checks]] if len(case.peer) == 1 else []
    while len(times) < (REPEATS.value or case.repeats):
        times.append([side.ask("run")["spent"] for side in (ours, peer)])
    mine, other = (measure.timing(side) for side in zip(*times, strict=True))
    facts = ours.ask("facts")
    needed, spent = facts["flops"]
    padding, steps = case.padding(), len(case.ours)
    rates = [1e-9 * rate.by[name] for name in ("XLA", "torch")]
    print(
        f"  {steps} step{'s' * (steps > 1)}, {len(times)} times: {needed / 1e9:,.0f} GFLOP beside "
        f"{spent / 1e9:,.0f}; predicted {spent / needed * rates[0] / rates[1]:.1f}× "
        f"({spent / needed:.1f}× fewer, matrix rate {rates[0] / rates[1]:.1f}×)\n"
        f"  seconds {mine.low:.2f} to {mine.high:.2f} beside {other.low:.2f} to {other.high:.2f}, "
        f"{mine.busy:.1f} cores busy beside {other.busy:.1f} of {measure.cores()}\n  "
        f"padding {padding[0]:.0%} beside {padding[1]:.0%}; "
        f"{facts['programs']} programs compiled in {facts['compile_seconds']:.0f} s",
        flush=True,
    )
    floor = measure.floor_seconds(flops=needed, rate=rate)
    return Result.of(case.name, mine, other, floor)


if __name__ == "__main__":
    cli.run(main)
