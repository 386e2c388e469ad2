"""Training steps on meshes of eight virtual devices against one device; run by test_sharding.py.

python tests/on_eight_devices.py llama|gpt2|mixtral

Prints a line per mesh that gave the same losses and adapter, and looks through the compiled
program: no weights are gathered for more than one layer at a time, and logits not at all.
"""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")

import optax  # noqa: E402
from flax import nnx  # noqa: E402

from pintern.adapters.adapter import Adapter, LoraPair, init_lora  # noqa: E402
from pintern.models.load import init_model  # noqa: E402
from pintern.models.sharding import make_mesh, sharding_of, traced_on  # noqa: E402
from pintern.models.shared_prefix import Batch  # noqa: E402
from pintern.training.placement import (  # noqa: E402
    of_members,
    place,
    place_batch,
    state_shardings,
)
from pintern.training.step import TrainBatch, TrainState, make_step  # noqa: E402

# All different, so that a shape in the program tells what it is of.
VOCAB, WIDTH, INNER, LAYERS, ROWS, SLOTS, TARGETS, PREFIX = 96, 32, 64, 3, 16, 12, 3, 19
MICRO_BATCHES, MEMBERS, VIRTUAL = 2, 2, 5
GROUPED = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
}
CONFIGS = {
    "llama": {"model_type": "llama", **GROUPED},
    "mixtral": {"model_type": "mixtral", **GROUPED, "num_local_experts": 4},
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": VOCAB,
        "n_embd": WIDTH,
        "n_layer": LAYERS,
        "n_head": 8,
        "n_positions": 128,
    },
}
MESHES = [(d, f, 8 // d // f) for d in (1, 2, 4, 8) for f in (1, 2, 4, 8) if d * f <= 8]
POPULATION_MESHES = [(2, 2, 2), (1, 8, 1)]


def make_batch(packed: int) -> TrainBatch:
    """Rows behind a prefix, some shorter than others, two to a lane, in two micro-batches; each a
    pack of its own, or those of a lane.
    """
    rng = np.random.default_rng(0)
    lead = (MICRO_BATCHES, 1, ROWS)
    rows = rng.integers(0, VOCAB, (*lead, SLOTS))
    prefix = rng.integers(0, VOCAB, (MICRO_BATCHES, 1, PREFIX))
    slots = np.broadcast_to(np.arange(4, 4 + TARGETS), (*lead, TARGETS)).copy()
    lanes = (MICRO_BATCHES, 1, ROWS // 2, 2 * TARGETS)
    packs = (MICRO_BATCHES, 1, ROWS // packed, packed * SLOTS)
    valid = np.arange(SLOTS) < rng.integers(8, SLOTS + 1, (*lead, 1))
    places = np.arange(ROWS)[:, None] % packed
    student = Batch(
        prefix_tokens=prefix,
        prefix_valid=np.ones_like(prefix),
        pack_tokens=rows.reshape(packs),
        pack_rows=np.where(valid, places + 1, 0).astype(np.int32).reshape(packs),
        target_rows=np.broadcast_to(np.repeat([0, 1], TARGETS), lanes).copy(),
        target_slots=(slots + SLOTS * places).reshape(lanes),
        target_tokens=np.take_along_axis(rows, slots + 1, -1).reshape(lanes),
        target_weights=np.ones(lanes, np.float32),
        packed=packed,
    )
    return TrainBatch(student, labelled=np.ones(lead, np.float32))


def make_adapter(decoder, seed: int) -> Adapter:
    """LoRA whose B isn't zero, and a soft prompt, on the host."""
    keys = jax.random.split(jax.random.key(seed), 3)
    lora = {
        name: LoraPair(pair.a, 0.1 * jax.random.normal(keys[1], pair.b.shape))
        for name, pair in init_lora(keys[0], decoder.linear_modules(), LAYERS, rank=4).items()
    }
    soft = 0.1 * jax.random.normal(keys[2], (VIRTUAL, WIDTH))
    return jax.tree.map(np.asarray, Adapter(lora, soft, scale=2.0))


def two_steps(program, state, base, batch, key):
    """Adapter and metrics after two steps, on the host."""
    seen = []
    for _ in range(2):
        state, metrics = program(state, base, batch, None, key)
        seen.append(jax.tree.map(np.asarray, metrics))
    return jax.tree.map(np.asarray, state.adapter), seen


def assert_equal(found, wanted, what) -> None:
    """Relative to the largest entry of each array."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True)
    for (path, one), two in pairs:
        error = np.abs(one - two).max() / np.abs(two).max()
        assert error < 1e-5, (what, jax.tree_util.keystr(path), error)


def check_gathers(text: str, what) -> None:
    """What the compiled program gathers, shape by shape."""
    shapes = re.findall(r"= \(?\w+\[([\d,]*)\]\S* all-gather", text)
    for shape in {tuple(int(n) for n in s.split(",") if n) for s in shapes}:
        weights = len(shape) > 2 and shape[-1] * shape[-2] >= WIDTH * WIDTH // 8
        assert not (weights and LAYERS in shape[:-2]), (what, "all layers' weights", shape)
        tokens = int(np.prod(shape[:-1])) if shape else 0
        logits = tokens % TARGETS == 0 and shape[-1:] and shape[-1] * 8 >= VOCAB > WIDTH
        vocabulary = shape[-1:] and shape[-1] in (VOCAB, VOCAB // 2, VOCAB // 4, VOCAB // 8)
        assert not (logits and vocabulary and tokens != WIDTH), (what, "logits", shape)


def main(family: str) -> None:
    decoder = init_model(CONFIGS[family], seed=1).decoder
    leaves, tree = jax.tree.flatten(decoder)
    # Louder, so that attention and routing are far from uniform.
    decoder = jax.tree.unflatten(tree, [5 * x if x.std() > 0 else x for x in leaves])
    graph, base = nnx.split(decoder)
    optimizer = optax.sgd(0.1, momentum=0.9)  # Adam would blow rounding up to its own size
    # Where experts are, all hidden states are made anyway; elsewhere those at targets alone.
    by_heart = 0.3 if family == "mixtral" else 0.0
    step = make_step(graph, optimizer, balance_weight=0.1, prompt_loss_weight=by_heart)
    batch = make_batch(1 if family == "gpt2" else 2)
    alone = [
        jax.tree.map(np.asarray, TrainState(adapter, optimizer.init(adapter)))
        for adapter in (make_adapter(decoder, seed) for seed in range(MEMBERS))
    ]
    together = jax.tree.map(lambda *x: np.stack(x), *alone)
    key = jax.random.key(0)
    cases = [
        (MESHES, step, alone[0], batch, key, False),
        (
            POPULATION_MESHES,
            jax.vmap(step, in_axes=(0, None, 0, None, 0)),
            together,
            jax.tree.map(lambda x: np.stack([x] * MEMBERS), batch),
            jax.random.split(key, MEMBERS),
            True,
        ),
    ]
    for meshes, function, state, rows, keys, members in cases:
        wanted = two_steps(jax.jit(function), jax.tree.map(jnp.asarray, state), base, rows, keys)
        for shape in meshes:
            mesh = make_mesh(dict(zip(("data", "fsdp", "tensor"), shape, strict=True)))
            where = sharding_of(mesh)
            there = nnx.from_flat_state(
                (k, v.replace(jax.device_put(v.get_value(), where(".".join(k), v.shape))))
                for k, v in nnx.to_flat_state(base)
            )
            laid = state_shardings(mesh, optimizer, alone[0])
            laid = of_members(laid) if members else laid
            placed = place(state, laid), there, place_batch(mesh, rows, members=members)
            program = jax.jit(
                traced_on(mesh, function), out_shardings=(laid, None), donate_argnums=0
            )
            program = program.lower(*placed, None, keys).compile()
            found = two_steps(program, *placed, keys)
            what = f"{family}, mesh {shape}, {'population' if members else 'alone'}"
            assert_equal(found, wanted, what)
            if not members:
                check_gathers(program.as_text(), what)
            print(what, "equal", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
