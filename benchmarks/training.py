"""Time and peak memory of training beside Hugging Face PEFT on PyTorch, on a CPU.

    python -m benchmarks.training
    python -m benchmarks.training --cases=train_plain --repeats=7
    python -m benchmarks.training --tiny                 (tries the script out; means nothing)

GPT-2-124M's shape in float32, random weights that both sides share. In a process of its own each
side makes a step on the same rows: its loss and gradients are compared, its peak memory is noted.
Then both take turns in one process. What is timed is a whole optimizer step: from NumPy batches to
the new adapter, clipping and AdamW included. The floor is what our rows need at the machine's
measured matrix rate, without padding.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from absl import flags

from benchmarks import measure, training_cases
from benchmarks.shared_models import GPT2_124M, TINY_GPT2, saved_model
from benchmarks.training_cases import RANK, Case, Work
from benchmarks.training_sides import Ours, Peer, difference, write_adapter
from pintern import cli

NAMES = ("train_recurrent_8", "train_recurrent_32", "train_plain", "train_soft_prompt")
CASES = flags.DEFINE_list("cases", list(NAMES), "Which of them.")
REPEATS = flags.DEFINE_integer("repeats", 3, "Timed runs of each side; half for the long ones.")
TINY = flags.DEFINE_boolean("tiny", False, "Tiny model and rows.")
DATA = flags.DEFINE_string("data", "../shared/data", "Folder with NL2Bash and GPT-2's tokenizer.")
SIDE = flags.DEFINE_enum("side", None, ["ours", "peer"], "One side alone; what a process does.")
FOLDER = flags.DEFINE_string("folder", None, "Of the model; with --side.")
# Of float32 sums in another order: relative, over each tensor's norm.
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-3


def main(_: list[str]) -> None:
    """Prints the table; exits with 1 where the sides don't compute the same."""
    import jax

    # Programs are compiled, not read back: what compiling costs is told.
    jax.config.update("jax_enable_compilation_cache", False)
    if SIDE.value:
        print(json.dumps(one_side(Path(FOLDER.value), case_of(CASES.value[0]))))
        return
    rate, band = measure.matrix_rate(), measure.bandwidth()
    print(measure.versions(), measure.floors_line(rate, band), sep="\n", flush=True)
    results, targets, failed = [], {}, False
    with saved_model(TINY_GPT2 if TINY.value else GPT2_124M) as folder:
        for name in CASES.value:
            case = case_of(name)
            adapter = write_adapter(folder, case)
            apart = {side: process(side, folder, name) for side in ("ours", "peer")}
            agree = compared(folder, case, apart)
            failed |= not agree
            results += timed(folder, adapter, case, rate)
            memory = [apart[side]["peak_mb"] for side in ("ours", "peer")]
            results.append(
                measure.Result(f"{name}_memory", memory[1] / memory[0], *memory, None, "MB")
            )
            targets[name] = case.target
    measure.show(results, targets)
    if not TINY.value:
        measure.save(results, "cpu")
    sys.exit(int(failed))


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
    raise flags.IllegalFlagValueError(f"--cases: {name!r} is none of {', '.join(NAMES)}")


def process(side: str, folder: Path, name: str) -> dict[str, float]:
    """Loss and peak memory of one side, in a process of its own; gradients are left in a file."""
    tiny = ["--tiny"] if TINY.value else []
    return measure.in_a_process_of_its_own(
        "benchmarks.training",
        f"--side={side}",
        f"--folder={folder}",
        f"--cases={name}",
        f"--data={DATA.value}",
        *tiny,
    )


def one_side(folder: Path, case: Case) -> dict[str, float]:
    """Makes one step, keeps its gradients, and says what it took."""
    import numpy as np

    adapter = folder / f"adapter-{case.virtual}"
    if SIDE.value == "ours":
        side = Ours(folder, adapter, keep=True)
        loss = side.run([case.checked_batch()])
        peak, found = measure.peak_mb(), side.gradients()
    else:
        side = Peer(folder, adapter, threads=measure.cores())
        loss = side.run(case.peer_batches()[:1], keep=True)
        peak = measure.peak_mb()
        from benchmarks.shared_models import pintern_model

        found = side.converted_gradients(pintern_model(folder), folder / "gradients")
    np.savez(folder / f"{case.name}-{SIDE.value}.npz", *found)
    return {"loss": loss, "peak_mb": peak}


def compared(folder: Path, case: Case, apart: dict[str, dict[str, float]]) -> bool:
    """Prints how far loss and gradients are apart, and returns whether they are equal."""
    import numpy as np

    sides = []
    for side in ("ours", "peer"):
        with np.load(folder / f"{case.name}-{side}.npz") as file:
            sides.append([file[name] for name in file.files])
    gradients = difference(*sides)
    ours, peer = (apart[side]["loss"] for side in ("ours", "peer"))
    agree = abs(ours - peer) <= LOSS_TOLERANCE * peer and gradients <= GRADIENT_TOLERANCE
    print(
        f"{case.name}: loss {ours:.6f} beside {peer:.6f}; gradients of {len(sides[0])} tensors "
        f"differ by {gradients:.1e} at most: {'equal' if agree else 'NOT EQUAL'}",
        flush=True,
    )
    return agree


def timed(folder: Path, adapter: Path, case: Case, rate: measure.Rate) -> list[measure.Result]:
    """Both sides by turns."""
    ours, peer = Ours(folder, adapter), Peer(folder, adapter, threads=measure.cores())
    batches, theirs = case.our_batches(), case.peer_batches()
    ours.compile(batches)
    mine, other = measure.paired(
        lambda: ours.run(batches),
        lambda: peer.run(theirs),
        REPEATS.value if len(theirs) == len(theirs[0]) == 1 else max(1, REPEATS.value // 2),
        warm=lambda: (ours.run(batches), peer.run([theirs[0][:1]])),
    )
    work = Work.of(ours.checkpoint.decoder, 0 if case.virtual else RANK)
    needed, spent = case.flops(work), case.peer_flops(work)
    padding = case.padding()
    rates = [1e-9 * rate.by[name] for name in ("XLA", "torch")]
    print(
        f"  {len(batches)} step{'s' * (len(batches) > 1)}: {needed / 1e9:,.0f} GFLOP beside "
        f"{spent / 1e9:,.0f}; predicted {spent / needed * rates[0] / rates[1]:.1f}× "
        f"({spent / needed:.1f}× fewer, matrix rate {rates[0] / rates[1]:.1f}×)\n"
        f"  seconds {mine.low:.2f} to {mine.high:.2f} beside {other.low:.2f} to {other.high:.2f}, "
        f"{mine.busy:.1f} cores busy beside {other.busy:.1f} of {measure.cores()}\n  "
        f"padding {padding[0]:.0%} beside {padding[1]:.0%}; "
        f"{ours.programs} programs compiled in {ours.compile_seconds:.0f} s",
        flush=True,
    )
    floor = measure.floor_seconds(flops=needed, rate=rate)
    return [measure.compare(case.name, mine, other, floor)]


if __name__ == "__main__":
    cli.run(main)
