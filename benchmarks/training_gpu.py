"""LoRA steps of a Llama of 1B parameters beside PEFT on an NVIDIA GPU, and how much of the GPU.

    python -m benchmarks.training_gpu
    python -m benchmarks.training_gpu --xla_defaults
    JAX_PLATFORMS=cpu python -m benchmarks.training_gpu --tiny     (tries the script out on a CPU)

Random weights in bfloat16 that both sides share; the adapter is float32. The shapes: rows of 1,024
tokens that share nothing, and 32 rows behind a template of 1,792. Utilisation is model operations
(4 per parameter of the blocks' linear maps and token, attention, logits at the targets; none for
LoRA and none for what is made again in the backward pass) over the measured matrix rate. Ours makes
some of these for no token but the targets, in the last block; the floor leaves them out.

XLA's attention and cuDNN's (`config.model.attention`) are timed first, in a loop over the layers,
which compiles soon. The faster one, without the loop (`config.model.unroll`), is timed beside PEFT.
Loss and gradients of each are compared with PEFT's, at bfloat16's tolerance. A timed run is a few
steps, which are asked for one after another, as in training: none waits for the one before it to be
told. Memory is what our program needs, by XLA's count, and the peak of what torch had.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from benchmarks import measure, training_cases
from benchmarks.results import Record, Result, UnequalError
from benchmarks.shared_models import LLAMA_1B, TINY_LLAMA, pintern_model, saved_model
from benchmarks.training_cases import Case, Work
from benchmarks.training_sides import Ours, Peer, difference, write_adapter
from pintern import cli
from pintern.errors import UserError

if TYPE_CHECKING:
    from pintern.models.load import Checkpoint

REPEATS = flags.DEFINE_integer("repeats", 3, "Timed runs of each side.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 4, "Steps of a run.", lower_bound=1)
DEFAULTS = flags.DEFINE_boolean(
    "xla_defaults", False, "XLA's own options in place of pintern's; nothing is saved."
)
TINY = flags.DEFINE_boolean("tiny", False, "Tiny model and rows, in float32; means nothing.")
# Ratio to PEFT at each shape, and utilisation at the first.
TARGETS = {"train_gpu_plain": 1.5, "train_gpu_recurrent": 6.0}
UTILISATION = 0.55
# Of sums over bfloat16 products in another order; relative, over each tensor's norm.
TOLERANCE = {"bfloat16": (5e-3, 1e-1), "float32": (1e-5, 1e-3)}


def main(_: list[str]) -> None:
    """Prints one table; exits with 1 where the sides don't compute the same."""
    # Both libraries share one device: neither may take it all beforehand.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    jax.config.update("jax_enable_compilation_cache", False)
    if device() == "cpu" and not TINY.value:
        raise UserError(
            "benchmarks.training_gpu needs an NVIDIA GPU, and JAX finds a CPU alone.",
            "--tiny tries the script out there.",
        )
    shape, dtype = (TINY_LLAMA, "float32") if TINY.value else (LLAMA_1B, "bfloat16")
    rate, band = measure.matrix_rate(), measure.bandwidth()
    print(measure.versions(), measure.floors_line(rate, band), sep="\n", flush=True)
    record = Record(None if TINY.value or DEFAULTS.value else "gpu")
    with saved_model(shape, dtype=dtype) as folder:
        base = pintern_model(folder, dtype=dtype)
        for case in cases(shape["vocab_size"]):
            with record.case(case.name) as found:
                found += measured(Bench(case, folder, base, dtype), record, rate)
    print(f"utilisation is to be at least {UTILISATION:.0%}")
    record.finish(TARGETS)


def measured(bench: Bench, record: Record, rate: measure.Rate) -> list[Result]:
    """Time, utilisation and memory by the attention that makes a step in the least time.

    One that fails is a failed case of its own, beside which the other is measured.
    """
    times = {}
    for attention in ("xla", "cudnn") if device() == "cuda" else ("xla",):
        with record.case(f"{bench.name} by {attention}'s attention"):
            times[attention] = bench.looped(attention)
    if not times:
        raise RuntimeError("there is no attention that works")
    return bench.timed(min(times, key=times.get), rate)


def cases(vocab: int) -> list[Case]:
    """The shape that shares nothing, and the one behind a template."""
    alone, shared = ((0, 24, 8), (32, 6, 2)) if TINY.value else ((0, 960, 64), (1792, 96, 32))
    rows = 4 if TINY.value else 32
    return [
        training_cases.recurrent(
            8, TARGETS["train_gpu_plain"], vocab, sizes=alone, name="train_gpu_plain"
        ),
        training_cases.recurrent(
            rows, TARGETS["train_gpu_recurrent"], vocab, sizes=shared, name="train_gpu_recurrent"
        ),
    ]


class Bench:
    """One case on both sides.

    Args:
      case: a single step.
      folder: of the base.
      base: the same, loaded.
      dtype: of the base.
    """

    def __init__(self, case: Case, folder: Path, base: Checkpoint, dtype: str):
        self._case, self._folder, self._base, self._dtype = case, folder, base, dtype
        self._batches, self._theirs = case.our_batches(), case.peer_batches()
        self._adapter = write_adapter(folder, case, base)
        self._peer = Peer(folder, self._adapter, dtype=dtype, device=device())
        self._peer.run(self._theirs)
        self._wanted = self._peer.converted_gradients(base, folder / "gradients")
        self._wanted_loss = self._peer.loss

    @property
    def name(self) -> str:
        """The case's."""
        return self._case.name

    def looped(self, attention: str) -> float:
        """Seconds of a step in a loop over the layers, which compiles soon."""
        ours = self._ours(attention, unroll=1)
        spent = [measure.spent(lambda: self._run(ours)) for _ in range(REPEATS.value)]
        seconds = measure.timing(spent).median / STEPS.value
        print(f"  {1e3 * seconds:.1f} ms a step in a loop over the layers", flush=True)
        return seconds

    def timed(self, attention: str, rate: measure.Rate) -> list[Result]:
        """Both sides by turns: time, utilisation, memory."""
        ours = self._ours(attention, unroll=0)
        reset_peak()
        runs = (
            lambda: self._run(ours),
            lambda: (self._peer.run(self._theirs * STEPS.value), synchronise()),
        )
        # Both have made steps already.
        found = measure.paired(*runs, REPEATS.value, warm=lambda: None)
        mine, other = (side.scaled(1 / STEPS.value) for side in found)
        case, name = self._case, self.name
        work = Work.of(self._base.decoder, 0)
        done, theirs = case.model_flops(work), case.peer_flops(work)
        used = [done / rate.value / mine.median, theirs / rate.value / other.median]
        share = Result(f"{name}_utilisation", used[0] / used[1], *used, None, "of the matrix rate")
        floor = measure.floor_seconds(flops=case.flops(work), rate=rate)
        found = [Result.of(name, mine, other, floor), share]
        peak = peer_peak_mb()
        if peak:
            needs = ours.megabytes
            found.append(Result(f"{name}_memory", peak / needs, needs, peak, None, "MB"))
        return found

    def _run(self, ours: Ours) -> None:
        ours.run(self._batches * STEPS.value)

    def _ours(self, attention: str, *, unroll: int) -> Ours:
        """Our side, after its first step has been compared.

        Raises:
          UnequalError: loss or gradients aren't PEFT's.
        """
        ours = Ours(
            self._folder,
            self._adapter,
            dtype=self._dtype,
            attention=attention,
            unroll=unroll,
            checkpoint=self._base,
            own_options=not DEFAULTS.value,
        )
        ours.run(self._batches)
        apart = difference(ours.gradients(), self._wanted)
        loss_limit, gradient_limit = TOLERANCE[self._dtype]
        near = abs(ours.loss - self._wanted_loss) <= loss_limit * self._wanted_loss
        agree = near and apart <= gradient_limit
        print(
            f"{self._case.name}, {attention}: loss {ours.loss:.5f} beside {self._wanted_loss:.5f}; "
            f"gradients differ by {apart:.1e} at most: {'equal' if agree else 'NOT EQUAL'} in "
            f"{self._dtype}; compiled in {ours.compile_seconds:.0f} s",
            flush=True,
        )
        if not agree:
            raise UnequalError("loss or gradients are not the peer's")
        return ours


def device() -> str:
    """Torch's name of where JAX computes."""
    import jax

    return "cpu" if jax.default_backend() == "cpu" else "cuda"


def synchronise() -> None:
    """Waits for torch."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def reset_peak() -> None:
    """Torch's count of its peak starts anew."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peer_peak_mb() -> float | None:
    """Peak of torch's arrays on the device; None on a CPU."""
    import torch

    return torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else None


if __name__ == "__main__":
    cli.run(main)
