"""Peak host memory and speed of loading a sharded checkpoint, against the promised bound.

    python -m benchmarks.loading                            (1.3 GB of random Llama weights)
    python -m benchmarks.loading --layers=32 --width=4096   (7B)

Random weights are written to a temporary folder, several shards of them, and loaded in a fresh
process whose high-water mark is read off the system. On a CPU the weights themselves lie in host
memory and are taken off; the bound on the rest is 1.3 × the largest shard file + one layer.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import flags

from pintern import cli

WIDTH = flags.DEFINE_integer("width", 1536, "Model width.", lower_bound=64)
flags.register_validator("width", lambda width: width % 64 == 0, "Give a multiple of 64.")
LAYERS = flags.DEFINE_integer("layers", 24, "Layers.", lower_bound=1)
VOCABULARY = flags.DEFINE_integer("vocabulary", 8192, "Rows of the embedding.", lower_bound=1)
SHARDS = flags.DEFINE_integer(
    "shards", 6, "Files that the checkpoint is split into, about.", lower_bound=1
)
DTYPES = flags.DEFINE_list("dtypes", ["bfloat16", "float32"], "Asked for; bfloat16 is stored.")
flags.register_validator(
    "dtypes",
    lambda names: names and set(names) <= {"bfloat16", "float32"},
    "Expected bfloat16, float32 or both.",
)
QUANTIZE = flags.DEFINE_bool("quantize", True, "Load once more with the linear maps in int8.")
DEVICES = flags.DEFINE_integer(
    "devices", 0, "Shard over so many virtual CPU devices; 0 is no.", lower_bound=0
)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "", "Measure this folder; what a fresh process does."
)
FACTOR = 1.3


def main(_: list[str]) -> None:
    """Prints one table; exits with 1 where the bound doesn't hold."""
    if CHECKPOINT.value:
        print(json.dumps(measure(Path(CHECKPOINT.value), DTYPES.value[0], QUANTIZE.value)))
        return
    import jax

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        layer = write(checkpoint)
        largest = max(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
        bound = FACTOR * largest + layer
        files = sum(1 for _ in checkpoint.glob("*.safetensors"))
        print(
            f"jax {jax.__version__}, {files} shards of at most {largest / 1e6:.0f} MB, a layer is "
            f"{layer / 1e6:.0f} MB: bound {bound / 1e6:.0f} MB beyond the weights"
        )
        print(f"{'in memory as':<18} {'weights MB':>10} {'beyond MB':>10} {'of bound':>9} {'s':>6}")
        held = True
        wanted = [(dtype, False) for dtype in DTYPES.value]
        for dtype, quantized in wanted + [(DTYPES.value[0], True)] * QUANTIZE.value:
            found = in_fresh_process(checkpoint, dtype, quantized)
            beyond = found["peak"] - found["before"] - found["weights"]
            held &= beyond <= bound
            name = f"int8, {dtype}" if quantized else dtype
            print(
                f"{name:<18} {found['weights'] / 1e6:>10.0f} {beyond / 1e6:>10.0f} "
                f"{beyond / bound:>8.0%} {found['seconds']:>6.1f}",
                flush=True,
            )
    if not held:
        sys.exit(1)


def write(directory: Path) -> int:
    """Writes a Llama of random weights in bfloat16; returns the bytes of one layer."""
    import numpy as np

    from pintern.models.checkpoint_files import write_tensors
    from pintern.models.families import FAMILIES, decoder_config
    from pintern.models.layout import places_of

    width = WIDTH.value
    raw = {
        "model_type": "llama",
        "vocab_size": VOCABULARY.value,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": LAYERS.value,
        "num_attention_heads": width // 64,
        "num_key_value_heads": width // 64,
        "tie_word_embeddings": False,
    }
    family = FAMILIES["llama"]
    shapes = {p.name: p.shape for p in places_of(family, decoder_config(family, raw))}
    storage = np.dtype("bfloat16")
    noise = 0.02 * np.random.default_rng(0).normal(size=1 << 20).astype(np.float32)

    def tensor(name: str) -> np.ndarray:
        return np.resize(noise, shapes[name]).astype(storage)

    total = sum(2 * int(np.prod(shape)) for shape in shapes.values())
    write_tensors(directory, shapes, tensor, storage, total // SHARDS.value)
    (directory / "config.json").write_text(json.dumps(raw))
    layer = (shape for name, shape in shapes.items() if ".layers.0." in name)
    return sum(2 * int(np.prod(shape)) for shape in layer)


def in_fresh_process(checkpoint: Path, dtype: str, quantized: bool) -> dict[str, float]:
    """`measure` in a process that has loaded nothing before."""
    command = [sys.executable, "-m", "benchmarks.loading", f"--checkpoint={checkpoint}"]
    command += [f"--dtypes={dtype}", f"--{'' if quantized else 'no'}quantize"]
    command += [f"--devices={DEVICES.value}"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def measure(checkpoint: Path, dtype: str, quantized: bool) -> dict[str, float]:
    """Bytes resident before, at most while, and of the weights after loading; and seconds."""
    import jax

    if DEVICES.value:
        jax.config.update("jax_num_cpu_devices", DEVICES.value)
    from pintern.models.load import load_model
    from pintern.models.quantize import parameter_bytes
    from pintern.models.sharding import on_one_device

    jax.block_until_ready(jax.jit(lambda x: x @ x)(jax.numpy.ones((8, 8))))
    before = resident("VmRSS")
    began = time.perf_counter()
    # Linux: the high-water mark starts again from here.
    Path("/proc/self/clear_refs").write_text("5")
    loaded = load_model(
        checkpoint,
        dtype=dtype,
        quantized=quantized,
        sharding_of=split_widest if DEVICES.value else on_one_device,
    )
    seconds = time.perf_counter() - began
    on_host = parameter_bytes(loaded.decoder) if jax.default_backend() == "cpu" else 0
    return {
        "before": before,
        "peak": resident("VmHWM"),
        "weights": on_host,
        "seconds": seconds,
    }


def split_widest(path: str, shape: tuple[int, ...]):
    """The last axis over all devices, as FSDP would; vectors and scales whole on each."""
    import jax
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    mesh = jax.make_mesh((jax.device_count(),), ("fsdp",), axis_types=(AxisType.Auto,))
    whole = len(shape) < 2 or shape[-2] < 64 or shape[-1] % jax.device_count()
    axes = (None,) * len(shape) if whole else (*(None,) * (len(shape) - 1), "fsdp")
    return NamedSharding(mesh, PartitionSpec(*axes))


def resident(entry: str) -> int:
    """Bytes of this process's memory, as the system counts them."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{entry}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {entry}: this benchmark needs Linux")


if __name__ == "__main__":
    cli.run(main)
