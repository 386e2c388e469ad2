"""What the planner reads off programs of known content, on eight virtual devices; prints JSON.

Run by test_launch_plan.py: python tests/plan_on_eight_devices.py
"""

import dataclasses
import json

import jax
import jax.numpy as jnp

jax.config.update("jax_num_cpu_devices", 8)

from flax import nnx  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402
from on_eight_devices import CONFIGS  # noqa: E402

from launch.planning.chips import CHIPS, Topology  # noqa: E402
from launch.planning.estimate import estimate_training  # noqa: E402
from launch.planning.hlo import Program, by_kind  # noqa: E402
from launch.planning.programs import Lengths, abstract_base, abstract_state  # noqa: E402
from launch.planning.tpu import compile_decoding, compile_training  # noqa: E402
from pintern.adapters.adapter import Adapter, init_lora  # noqa: E402
from pintern.config import default_config  # noqa: E402
from pintern.models.families import decoder_config, family_of  # noqa: E402
from pintern.models.load import init_model  # noqa: E402
from pintern.models.sharding import make_mesh, sharding_of  # noqa: E402
from pintern.training.placement import place, state_shardings  # noqa: E402
from pintern.training.step import TrainState, make_optimizer  # noqa: E402

MESH = jax.make_mesh((2, 4), ("outer", "inner"))
LENGTHS = Lengths(prefix=16, row=8, target=4, query=8)


def per_device(body):
    """Compiled for `x [64, 32]` float32, of which each device has 8 rows, 1,024 bytes."""
    spec = PartitionSpec(("outer", "inner"))
    mapped = jax.shard_map(body, mesh=MESH, in_specs=spec, out_specs=spec, check_vma=False)
    x = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=NamedSharding(MESH, spec))
    return jax.jit(mapped).lower(x).compile().as_text()


def looped(times, body):
    def run(x):
        return jax.lax.scan(lambda x, _: (body(x), None), x, length=times)[0]

    return run


def until_small(x):
    """Ends by what the data say."""
    return jax.lax.while_loop(lambda x: jnp.max(x) > 1, lambda x: jax.lax.psum(x, "inner") / 9, x)


def gather(x):
    return jnp.sin(jax.lax.all_gather(x, "inner", tiled=True))[:8]


BODIES = {
    "all_gather": gather,
    "gather_in_loop": looped(5, gather),
    "gather_in_loops": looped(3, looped(5, gather)),
    "psum": lambda x: jax.lax.psum(x, "outer"),
    "psum_scatter": lambda x: jax.lax.psum_scatter(x, "inner", tiled=True),
    "all_to_all": lambda x: jax.lax.all_to_all(x, "inner", 0, 1, tiled=True),
    "ppermute": looped(7, lambda x: jax.lax.ppermute(x, "inner", [(i, i ^ 1) for i in range(4)])),
    "while": until_small,
    "products": looped(6, lambda x: x @ x.T @ x),
    "nothing": lambda x: x + 1,
}


def collectives():
    found = {}
    for name, body in BODIES.items():
        program = Program(per_device(body), loop_trips=11)
        found[name] = {
            "kinds": by_kind(program.collectives()),
            "devices": [one.devices for one in program.collectives()],
            "wire": sum(one.wire_bytes for one in program.collectives()),
            "flops": program.flops(),
        }
    return found


def config_of(sizes):
    config = default_config()
    config.mesh.update(sizes)
    config.model.dtype = "float32"
    config.model.remat = True
    config.adapter.rank = 2
    config.train.batch_rows = 16
    config.eval.batch_rows = 8
    config.eval.max_new_tokens = 6
    return config


def real_bytes(tree):
    """What lies on the first device, of arrays that are really there."""
    device = jax.devices()[0]
    return sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(tree)
        for shard in leaf.addressable_shards
        if shard.device == device
    )


def plan(family, sizes):
    raw, config = CONFIGS[family], config_of(sizes)
    shape = decoder_config(family_of(raw), raw)
    mesh = make_mesh(config.mesh.to_dict())
    topology = Topology("eight CPUs", CHIPS["v5e"], 8, tuple(jax.devices()))
    programs = [
        *compile_training(config, shape, topology, LENGTHS),
        *compile_decoding(config, shape, topology, LENGTHS),
    ]
    checkpoint = init_model(raw, seed=0, sharding_of=sharding_of(mesh))
    decoder = checkpoint.decoder
    lora = init_lora(jax.random.key(0), decoder.linear_modules(), shape.num_layers, rank=2)
    optimizer = make_optimizer(config.train)
    state = TrainState(Adapter(lora), optimizer.init(Adapter(lora)))
    state = place(state, state_shardings(mesh, optimizer, state))
    base = abstract_base(config, shape, mesh)
    ours = jax.tree.leaves((abstract_state(config, base, mesh), base.state))
    real = jax.tree.leaves((state, nnx.state(decoder)))
    same = len(ours) == len(real) and all(
        (a.shape, a.dtype) == (b.shape, b.dtype) and a.sharding.is_equivalent_to(b.sharding, b.ndim)
        for a, b in zip(ours, real, strict=True)
    )
    estimate = estimate_training(config, shape, topology, LENGTHS)
    return {
        "programs": [
            {
                **{k: v for k, v in dataclasses.asdict(one).items() if k != "collectives"},
                "kinds": by_kind(one.collectives),
                "parts": dict(one.parts),
                "total": one.total,
            }
            for one in programs
        ],
        "real": {
            "weights": real_bytes(nnx.state(decoder)),
            "adapter": real_bytes(state.adapter),
            "optimizer": real_bytes(state.optimizer),
        },
        "same": same,
        "estimate": {"parts": dict(estimate.parts), "flops": estimate.flops},
    }


if __name__ == "__main__":
    print(
        json.dumps(
            {
                "collectives": collectives(),
                "plan": plan("llama", {"data": 2, "fsdp": 2, "tensor": 2}),
            }
        )
    )
