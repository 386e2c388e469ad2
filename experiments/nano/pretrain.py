"""Trains the bundled base model: a small Llama that reads a prompt.

    python -m experiments.nano.pretrain --out=runs/nano

Episodes are text-to-SQL over random schemas with private names: with the prompt the model can
answer, without it nobody could. Two things make the skill of looking a name up in the prompt appear
within minutes on two CPU cores: training starts with bare look-ups (word, then code), which have a
target at every other token, and a step holds many schemas with few rows each. Then schemas grow as
the model masters them.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import optax
from absl import flags
from flax import nnx
from jaxtyping import Array

from experiments.nano import episodes
from experiments.nano.tokenizer import train_tokenizer
from pintern import cli
from pintern.errors import UserError
from pintern.models.decoder import Decoder
from pintern.models.families import FAMILIES
from pintern.models.shared_prefix import Batch, cross_entropy, target_logits
from pintern.progress import Progress
from pintern.prompts.tokens import PieceTokenizer

OUT = flags.DEFINE_string("out", "runs/nano", "Folder of the checkpoint; must not exist.")
STEPS = flags.DEFINE_integer("steps", 4000, "Optimizer steps.", lower_bound=101)  # 100 warm up
SEED = flags.DEFINE_integer("seed", 0, "Seed of weights, tokenizer and episodes.", lower_bound=0)
LEARNING_RATE = flags.DEFINE_float("learning_rate", 1.5e-3, "Peak rate of AdamW.")
PASS_MARK = flags.DEFINE_float("pass_mark", 0.6, "Share of rows right before schemas grow.")
INIT = flags.DEFINE_string("init", "", "Checkpoint to go on from, e.g. an earlier --out.")
FIRST_LEVEL = flags.DEFINE_integer(
    "first_level",
    0,
    "Difficulty to start at.",
    lower_bound=0,
    upper_bound=len(episodes.LADDER) - 1,
)
WIDTH = flags.DEFINE_integer(
    "width", 192, "Width of the model without --init; a multiple of 64.", lower_bound=64
)
LAYERS = flags.DEFINE_integer("layers", 4, "Blocks, likewise.", lower_bound=1)

HEAD_DIM = 32
AHEAD = 4  # batches made while a step runs


def nano_config(vocab_size: int) -> dict[str, Any]:
    """The config.json of the model."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": WIDTH.value,
        "num_hidden_layers": LAYERS.value,
        "num_attention_heads": WIDTH.value // HEAD_DIM,
        "num_key_value_heads": WIDTH.value // HEAD_DIM // 2,
        "head_dim": HEAD_DIM,
        "intermediate_size": WIDTH.value * 8 // 3,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


def loss_and_accuracy(params: nnx.State, graph: nnx.GraphDef, batch: Batch) -> tuple[Array, Array]:
    """Mean nats per target token, and the share of rows whose every target is the likeliest."""
    logits = target_logits(nnx.merge(graph, params), batch)
    right = (logits.argmax(-1) == batch.target_tokens) | (batch.target_weights == 0)
    loss = cross_entropy(logits, batch.target_tokens, batch.target_weights)
    return loss / batch.target_weights.sum(), right.all(-1).mean()


def _optimizer() -> optax.GradientTransformation:
    peak = LEARNING_RATE.value
    rate = optax.warmup_cosine_decay_schedule(0.0, peak, 100, STEPS.value, 0.02 * peak)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        # Decay for the blocks' matrices, which are stacked; none for norms and the embedding.
        optax.adamw(
            rate,
            b2=0.98,
            weight_decay=0.05,
            mask=lambda params: jax.tree.map(lambda x: x.ndim > 2, params),
        ),
    )


class _Batches:
    """Batches made by a thread, `AHEAD` steps early, at difficulties asked for in order.

    What a batch holds depends on the seed and on the difficulties asked for, never on timing.
    """

    def __init__(self, make: Callable[[int], tuple[int, Batch]], first: int):
        self._make, self._thread = make, ThreadPoolExecutor(1)
        self._made = deque(self._thread.submit(make, first) for _ in range(AHEAD))

    def next(self, top: int) -> tuple[int, Batch]:
        self._made.append(self._thread.submit(self._make, top))
        return self._made.popleft().result()


def _copy_tokenizer(source: Path, target: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, target / name)


def main(_: list[str]) -> None:
    """Trains and writes the checkpoint, its tokenizer and training.json."""
    from pintern.models.load import load_model, save_model

    out = Path(OUT.value)
    if out.exists():
        raise UserError(f"--out={out} is there already.", "Nothing is overwritten: name another.")
    if WIDTH.value % (2 * HEAD_DIM):
        raise UserError(f"--width={WIDTH.value} is not a multiple of {2 * HEAD_DIM}.", "Use 192.")
    out.mkdir(parents=True)
    family = FAMILIES["llama"]
    if INIT.value:
        _copy_tokenizer(Path(INIT.value), out)
        checkpoint = load_model(INIT.value)
        raw, decoder = checkpoint.raw_config, checkpoint.decoder
    else:
        train_tokenizer(SEED.value, out)
        raw = nano_config(PieceTokenizer.load(out).size)
        decoder = Decoder(family.to_config(raw), rngs=nnx.Rngs(SEED.value))
    tokenizer = PieceTokenizer.load(out)
    graph, params = nnx.split(decoder)
    optimizer = _optimizer()
    state = optimizer.init(params)

    @jax.jit
    def step(
        params: nnx.State, state: optax.OptState, batch: Batch
    ) -> tuple[nnx.State, optax.OptState, Array, Array]:
        (loss, accuracy), gradients = jax.value_and_grad(loss_and_accuracy, has_aux=True)(
            params, graph, batch
        )
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss, accuracy

    rng = random.Random(SEED.value)

    def make(top: int) -> tuple[int, Batch]:
        level = top if top == 0 or rng.random() < 0.8 else rng.randint(max(0, top - 2), top - 1)
        return level, episodes.make_batch(tokenizer, rng, episodes.LADDER[level])

    top, mean, began = FIRST_LEVEL.value, 0.0, time.monotonic()
    batches = _Batches(make, top)
    with (out / "log.jsonl").open("w") as log, Progress("pretrain", STEPS.value) as bar:
        for i in range(STEPS.value):
            level, batch = batches.next(top)
            params, state, loss, accuracy = step(params, state, batch)
            if level == top:
                mean = 0.95 * mean + 0.05 * float(accuracy)
            if mean > PASS_MARK.value and top + 1 < len(episodes.LADDER):
                top, mean = top + 1, 0.0
            row = {"step": i, "top": top, "level": level, "loss": round(float(loss), 4)}
            row |= {"accuracy": round(float(accuracy), 4), "mean": round(mean, 4)}
            log.write(json.dumps(row | {"seconds": round(time.monotonic() - began)}) + "\n")
            log.flush()
            bar.advance(note=f"level={top} loss={row['loss']:.3f} rows right={mean:.2f}")
            if (i + 1) % 200 == 0 or i + 1 == STEPS.value:
                final = i + 1 == STEPS.value
                folder = out if final else out / f"step-{i + 1}"
                save_model(folder, nnx.merge(graph, params), family, raw, dtype="bfloat16")
                if not final:
                    _copy_tokenizer(out, folder)
    record = {
        "command": f"python -m experiments.nano.pretrain {' '.join(sys.argv[1:])}".strip(),
        "seed": SEED.value,
        "steps": STEPS.value,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "rows_right_at_hardest_level": round(mean, 3) if top + 1 == len(episodes.LADDER) else None,
        "jax": jax.__version__,
    }
    (out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    cli.run(main)
