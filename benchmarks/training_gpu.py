"""LoRA steps of a Llama of 1B parameters beside PEFT on an NVIDIA GPU, and how much of the GPU.

    python -m benchmarks.training_gpu
    JAX_PLATFORMS=cpu python -m benchmarks.training_gpu --tiny     (tries the script out on a CPU)

Random weights in bfloat16 that both sides share; the adapter is float32. The shapes: rows of 1,024
tokens that share nothing, and 32 rows behind a template of 1,792. Utilisation is model operations
(4 per parameter of the blocks' linear maps and token, attention, logits at the targets; none for
LoRA and none for what is made again in the backward pass) over the measured matrix rate. Loss and
gradients of both sides are compared first, at bfloat16's tolerance. Attention is XLA's or cuDNN's
(`config.model.attention`), whichever is faster at the shape; both times are printed. Peak memory is
each library's own count of what it had on the device.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from absl import flags

from benchmarks import measure, training_cases
from benchmarks.shared_models import LLAMA_1B, TINY_LLAMA, pintern_model, saved_model
from benchmarks.training_cases import Case, Work
from benchmarks.training_sides import Ours, Peer, difference, write_adapter
from pintern import cli

REPEATS = flags.DEFINE_integer("repeats", 10, "Timed steps of each side.")
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
    shape, dtype = (TINY_LLAMA, "float32") if TINY.value else (LLAMA_1B, "bfloat16")
    rate, band = measure.matrix_rate(), measure.bandwidth()
    print(measure.versions(), measure.floors_line(rate, band), sep="\n", flush=True)
    results, failed = [], False
    with saved_model(shape, dtype=dtype) as folder:
        for case in cases(shape["vocab_size"]):
            adapter = write_adapter(folder, case)
            attention = fastest_attention(folder, adapter, case, dtype)
            failed |= not compared(folder, adapter, case, dtype, attention)
            results += timed(folder, adapter, case, dtype, attention, rate)
    measure.show(results, TARGETS)
    print(f"utilisation is to be at least {UTILISATION:.0%}")
    if not TINY.value:
        measure.save(results, "gpu")
    sys.exit(int(failed))


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


def device() -> str:
    """Torch's name of where JAX computes."""
    import jax

    return "cpu" if jax.default_backend() == "cpu" else "cuda"


def fastest_attention(folder: Path, adapter: Path, case: Case, dtype: str) -> str:
    """Which implementation makes a step in the least time."""
    times = {}
    for attention in ("xla", "cudnn") if device() == "cuda" else ("xla",):
        ours = Ours(folder, adapter, dtype=dtype, attention=attention)
        batches = case.our_batches()
        ours.run(batches)
        spent = [measure.spent(lambda o=ours, b=batches: o.run(b)) for _ in range(REPEATS.value)]
        times[attention] = measure.timing(spent).median
    told = ", ".join(f"{name} {1e3 * seconds:.1f} ms" for name, seconds in times.items())
    print(f"{case.name}: attention {told}", flush=True)
    return min(times, key=times.get)


def compared(folder: Path, adapter: Path, case: Case, dtype: str, attention: str) -> bool:
    """Prints how far loss and gradients are apart, and returns whether they are equal."""
    ours = Ours(folder, adapter, dtype=dtype, attention=attention)
    peer = Peer(folder, adapter, dtype=dtype, device=device())
    ours.run([case.checked_batch()])
    peer.run(case.peer_batches()[:1])
    losses = ours.loss, peer.loss
    theirs = peer.converted_gradients(pintern_model(folder), folder / "gradients")
    apart = difference(ours.gradients(), theirs)
    loss_limit, gradient_limit = TOLERANCE[dtype]
    agree = abs(losses[0] - losses[1]) <= loss_limit * losses[1] and apart <= gradient_limit
    print(
        f"{case.name}: loss {losses[0]:.5f} beside {losses[1]:.5f}; gradients differ by "
        f"{apart:.1e} at most: {'equal' if agree else 'NOT EQUAL'} in {dtype}",
        flush=True,
    )
    return agree


def timed(
    folder: Path, adapter: Path, case: Case, dtype: str, attention: str, rate: measure.Rate
) -> list[measure.Result]:
    """Both sides by turns: time, utilisation, memory."""
    ours = Ours(folder, adapter, dtype=dtype, attention=attention)
    peer = Peer(folder, adapter, dtype=dtype, device=device())
    batches, theirs = case.our_batches(), case.peer_batches()
    ours.compile(batches)
    reset_peaks()
    mine, other = measure.paired(
        lambda: ours.run(batches), lambda: (peer.run(theirs), synchronise()), REPEATS.value
    )
    work = Work.of(ours.checkpoint.decoder, 0)
    needed = case.flops(work)
    used = [needed / rate.value / mine.median, case.peer_flops(work) / rate.value / other.median]
    name = case.name
    found = [
        measure.compare(name, mine, other, measure.floor_seconds(flops=needed, rate=rate)),
        measure.Result(f"{name}_utilisation", used[0] / used[1], *used, None, "of the matrix rate"),
    ]
    peaks = device_peaks_mb()
    if peaks:
        found.append(measure.Result(f"{name}_memory", peaks[1] / peaks[0], *peaks, None, "MB"))
    return found


def synchronise() -> None:
    """Waits for torch."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def reset_peaks() -> None:
    """Torch's count of its peak starts anew; JAX's can't, and so is of the whole process."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def device_peaks_mb() -> tuple[float, float] | None:
    """Peak of JAX's and of torch's arrays on the device; None on a CPU."""
    import jax
    import torch

    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" not in stats or not torch.cuda.is_available():
        return None
    return stats["peak_bytes_in_use"] / 1e6, torch.cuda.max_memory_allocated() / 1e6


if __name__ == "__main__":
    cli.run(main)
