"""The int8 base beside the unquantised one: memory, speed, and NLL on the company task.

    python -m benchmarks.quantize                           (the bundled model)
    python -m benchmarks.quantize --width=1024 --layers=8   (random weights, of a size that counts)

Prefill reads rows of text; decode makes one token for each row; a step is a training step's forward
and backward pass to LoRA on every linear map. Times are medians.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

from pintern import cli

MODEL = flags.DEFINE_string("model", "nano", "A checkpoint: a folder, org/name, or nano.")
WIDTH = flags.DEFINE_integer(
    "width", 0, "Of a model of random weights in place of --model.", lower_bound=0
)
flags.register_validator("width", lambda width: width % 64 == 0, "Give a multiple of 64.")
LAYERS = flags.DEFINE_integer("layers", 8, "Of a model of random weights.", lower_bound=1)
ROWS = flags.DEFINE_integer("rows", 8, "Rows at once.", lower_bound=1)
SLOTS = flags.DEFINE_integer("slots", 128, "Tokens of a row.", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 10, "Timed runs of each.", lower_bound=1)


def main(_: list[str]) -> None:
    """Prints one table."""
    from pintern.models.quantize import parameter_bytes, quantize

    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {ROWS.value}×{SLOTS.value}")
    print(f"{'base':<16} {'MB':>8} {'of it maps':>10} {'NLL':>8}", end="")
    print(f" {'prefill ms':>11} {'decode ms':>10} {'step ms':>8}")
    for dtype in ("float32", "bfloat16"):
        for held in (dtype, "int8"):
            decoder, likelihood = load(jnp.dtype(dtype))
            if held == "int8":
                quantize(decoder)
            name = held if held == dtype else f"int8, {dtype}"
            kernels = sum(
                leaf.nbytes
                for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.state(decoder))
                if "kernel" in jax.tree_util.keystr(path)
            )
            nll = "-" if likelihood is None else f"{likelihood(decoder):.4f}"
            print(
                f"{name:<16} {parameter_bytes(decoder) / 1e6:>8.1f} {kernels / 1e6:>10.1f} "
                f"{nll:>8} {prefill_ms(decoder):>11.2f} {decode_ms(decoder):>10.2f} "
                f"{step_ms(decoder):>8.1f}",
                flush=True,
            )


def load(dtype: jnp.dtype) -> tuple:
    """A decoder, and its NLL on the company task where it is a trained one."""
    if WIDTH.value:
        from pintern.models.load import init_model

        shape = {
            "model_type": "llama",
            "vocab_size": 8192,
            "hidden_size": WIDTH.value,
            "intermediate_size": 4 * WIDTH.value,
            "num_hidden_layers": LAYERS.value,
            "num_attention_heads": WIDTH.value // 64,
            "num_key_value_heads": WIDTH.value // 64,
        }
        return init_model(shape, seed=0, dtype=dtype).decoder, None
    from pintern.assemble import load_base
    from pintern.config import default_config

    config = default_config()
    config.model.path = MODEL.value
    config.model.dtype = dtype.name
    checkpoint, tokenizer = load_base(config)
    return checkpoint.decoder, lambda decoder: company_nll(decoder, tokenizer)


def company_nll(decoder, tokenizer) -> float:
    """Nats per token of every fourth test answer of the company task, behind the full prompt."""
    from pintern.models.shared_prefix import cross_entropy, target_logits
    from pintern.prompts.rows import Renderer
    from pintern.tasks.company import company_task
    from pintern.training.batches import Shapes, make_batch

    task = company_task()
    renderer = Renderer.create(tokenizer, task)
    prefix = renderer.prefix(task.template)
    rows = [renderer.row(piece) for piece in renderer.pieces(task.test[::4])]
    shape = Shapes.plan(prefix, rows).rising[0]
    graph, state = nnx.split(decoder)

    @jax.jit
    def total(state: nnx.State, batch) -> jax.Array:
        logits = target_logits(nnx.merge(graph, state), batch)
        return cross_entropy(logits, batch.target_tokens, batch.target_weights)

    batches = [make_batch(prefix, rows[i : i + 20], shape) for i in range(0, len(rows) - 19, 20)]
    tokens = sum(batch.target_weights.sum() for batch in batches)
    return float(sum(total(state, batch) for batch in batches) / tokens)


def prefill_ms(decoder) -> float:
    """Milliseconds to read the rows."""
    graph, state = nnx.split(decoder)
    run = jax.jit(lambda state: nnx.merge(graph, state)(tokens(), positions())[0])
    return median_ms(lambda: run(state))


def decode_ms(decoder) -> float:
    """Milliseconds to make one token more for each row."""
    graph, state = nnx.split(decoder)
    _, cache = jax.jit(lambda state: nnx.merge(graph, state)(tokens(), positions()))(state)
    cache = cache.with_room(1)

    @jax.jit
    def run(state, cache):
        decoder = nnx.merge(graph, state)
        hidden, _ = decoder(tokens()[..., :1], positions()[..., -1:] + 1, cache)
        return decoder.logits(hidden)

    return median_ms(lambda: run(state, cache))


def step_ms(decoder) -> float:
    """Milliseconds of the gradients of LoRA, rank 16, on every linear map."""
    from pintern.adapters.adapter import Adapter, init_lora

    modules, layers = decoder.linear_modules(), decoder.config.num_layers
    adapter = Adapter(init_lora(jax.random.key(0), modules, layers, rank=16), None)
    graph, state = nnx.split(decoder)

    @jax.jit
    @jax.grad
    def run(adapter, state):
        hidden, _ = nnx.merge(graph, state)(tokens(), positions(), adapter=adapter)
        return jnp.square(hidden.astype(jnp.float32)).mean()

    return median_ms(lambda: run(adapter, state))


def tokens() -> jax.Array:
    """`[1, row, slot]` ids."""
    return jnp.arange(ROWS.value * SLOTS.value).reshape(1, ROWS.value, SLOTS.value) % 1000


def positions() -> jax.Array:
    """`[1, row, slot]` places."""
    return jnp.broadcast_to(jnp.arange(SLOTS.value), (1, ROWS.value, SLOTS.value))


def median_ms(run: Callable[[], object]) -> float:
    """Median time of a run, after one that compiles."""
    jax.block_until_ready(run())
    times = []
    for _ in range(REPEATS.value):
        began = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - began)
    return 1e3 * float(np.median(times))


if __name__ == "__main__":
    cli.run(main)
