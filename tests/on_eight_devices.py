"""Training steps on a mesh of eight virtual devices against one; run by test_sharding.py.

python tests/on_eight_devices.py FAMILY
"""

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
from pintern.training.placement import place, place_batch, state_shardings  # noqa: E402
from pintern.training.step import TrainBatch, TrainState, make_step  # noqa: E402

VOCAB, WIDTH, LAYERS, ROWS = 96, 32, 3, 8
LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
}
SHAPES = {
    "llama": {"model_type": "llama", **LLAMA},
    "mixtral": {"model_type": "mixtral", **LLAMA, "num_local_experts": 4},
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": VOCAB,
        "n_embd": WIDTH,
        "n_layer": LAYERS,
        "n_head": 8,
        "n_positions": 128,
    },
}
MESHES = [
    {"data": 8, "fsdp": 1, "tensor": 1},
    {"data": 1, "fsdp": 8, "tensor": 1},
    {"data": 1, "fsdp": 1, "tensor": 8},
    {"data": 2, "fsdp": 2, "tensor": 2},
    {"data": 1, "fsdp": 4, "tensor": 2},
    {"data": 4, "fsdp": 1, "tensor": 2},
]


def batch(micro: int) -> TrainBatch:
    """Eight rows behind a prefix, some shorter than others, in `micro` parts."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, VOCAB, (micro, 1, ROWS, 12))
    prefix = rng.integers(0, VOCAB, (micro, 1, 20))
    valid = (np.arange(12) < rng.integers(8, 13, (micro, 1, ROWS, 1))).astype(np.int32)
    slots = np.broadcast_to(np.arange(4, 7), (micro, 1, ROWS, 3)).copy()
    student = Batch(
        prefix_tokens=prefix,
        prefix_valid=np.ones_like(prefix),
        row_tokens=rows,
        row_valid=valid,
        target_slots=slots,
        target_tokens=np.take_along_axis(rows, slots + 1, -1),
        target_weights=np.ones(slots.shape, np.float32),
    )
    return TrainBatch(student, labelled=np.ones((micro, 1, ROWS), np.float32))


def main(family: str) -> None:
    raw = SHAPES[family]
    decoder = init_model(raw, seed=1).decoder
    leaves, tree = jax.tree.flatten(decoder)
    decoder = jax.tree.unflatten(tree, [5 * x if x.std() > 0 else x for x in leaves])
    graph, base = nnx.split(decoder)
    lora = init_lora(jax.random.key(0), decoder.linear_modules(), LAYERS, rank=4)
    lora = {
        k: LoraPair(p.a, 0.1 * jax.random.normal(jax.random.key(1), p.b.shape))
        for k, p in lora.items()
    }
    soft = 0.1 * jax.random.normal(jax.random.key(2), (5, WIDTH))
    adapter = jax.tree.map(np.asarray, Adapter(lora, soft, scale=2.0))
    optimizer = optax.sgd(0.1, momentum=0.9)  # Adam would blow rounding up to its own size
    for micro in (1, 2):
        step = make_step(graph, optimizer, balance_weight=0.1)

        def run(program, state, base, batch):
            seen = []
            for _ in range(2):
                state, metrics = program(state, base, batch, None, jax.random.key(0))
                seen.append({k: float(v) for k, v in metrics.items()})
            return jax.tree.map(np.asarray, state.adapter), seen

        state = TrainState(jax.tree.map(jnp.asarray, adapter), optimizer.init(adapter))
        fresh = jax.tree.map(np.asarray, state)  # what is donated may share memory with its source
        wanted, expected = run(jax.jit(step), state, base, batch(micro))
        for sizes in MESHES:
            mesh = make_mesh(sizes)
            where = sharding_of(mesh)
            there = nnx.from_flat_state(
                (k, v.replace(jax.device_put(v.get_value(), where(".".join(k), v.shape))))
                for k, v in nnx.to_flat_state(base)
            )
            laid = state_shardings(mesh, optimizer, state)
            program = jax.jit(traced_on(mesh, step), out_shardings=(laid, None), donate_argnums=0)
            found, metrics = run(
                program, place(fresh, laid), there, place_batch(mesh, batch(micro))
            )
            for one, two in zip(metrics, expected, strict=True):
                for name, value in two.items():
                    assert abs(one[name] - value) <= 1e-5 * abs(value), (
                        sizes,
                        micro,
                        name,
                        one,
                        two,
                    )
            for (path, a), b in zip(
                jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True
            ):
                error = np.abs(a - b).max() / np.abs(b).max()
                assert error < 1e-5, (sizes, micro, jax.tree_util.keystr(path), error)
            print(family, sizes, micro, "equal", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
