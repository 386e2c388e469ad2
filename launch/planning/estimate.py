"""What programs take on chips that nothing is compiled for: sums over the architecture.

Weights, adapter, optimizer and batch are exact, of the run's own shardings. The rest is counted as
the programs are written (one pass over the prefix and one over the rows, each forward, once more
under remat, and backward to the activations alone, since the base is frozen), and is an estimate:
no kernel's workspace, no fragmentation, no fusion is in it.
"""

from __future__ import annotations

import dataclasses

import jax
from jax.sharding import AbstractMesh, AxisType
from ml_collections import ConfigDict

from launch.planning.chips import Topology
from launch.planning.hlo import Collective
from launch.planning.hlo_text import Tensor
from launch.planning.measure import Measured, device_bytes
from launch.planning.programs import (
    Base,
    Lengths,
    abstract_base,
    abstract_batch,
    abstract_state,
    serving_adapter,
)
from pintern.models.config import DecoderConfig
from pintern.models.sharding import AXES, mesh_sizes, rows_over

_BEFORE_ATTENTION = {"attention.query", "attention.key", "attention.value", "attention.qkv"}


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer of a decoder in numbers, whole.

    Attributes:
      kernels: weights of its linear maps that a token meets.
      stored: bytes of all its kernels, every expert's too.
      inner: widths of what a token has in it beside the residual stream, split over `tensor`.
      keys: width of a token's keys and values together.
      attended: heads × dim.
    """

    kernels: float
    stored: float
    inner: float
    keys: int
    attended: int

    @classmethod
    def of(cls, shape: DecoderConfig, base: Base) -> Layer:
        """The layer of a decoder."""
        linear = sum(a * b for a, b in base.decoder.linear_modules().values())
        expert = 3 * shape.model_dim * shape.mlp_dim
        blocks = sum(
            leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(base.state["blocks"])
        )
        keys = 2 * shape.num_kv_heads * shape.head_dim
        attended = shape.num_heads * shape.head_dim
        each = shape.experts_per_token or 1
        matrices = 2 if shape.mlp == "plain" else 4
        return cls(
            kernels=linear + shape.experts_per_token * expert,
            stored=blocks / shape.num_layers,
            inner=2 * attended + keys + matrices * each * shape.mlp_dim,
            keys=keys,
            attended=attended,
        )


def abstract_mesh(config: ConfigDict, count: int) -> AbstractMesh:
    """The config's mesh over so many chips, without any."""
    sizes = tuple(mesh_sizes(config.mesh.to_dict(), count).values())
    return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def slots(config: ConfigDict, lengths: Lengths) -> int:
    """What is read before the rows: the soft prompt and the prefix."""
    return config.adapter.soft_prompt + lengths.prefix


def split(size: int, tensor: int) -> int:
    """Over how many chips heads or a vocabulary lie: not even, they are whole on every one."""
    return tensor if size % tensor == 0 else 1


def step_flops(config: ConfigDict, shape: DecoderConfig, base: Base, lengths: Lengths) -> float:
    """Of a training step on all chips together, nothing done twice: forward, and backward to the
    activations. With remat the compiled step has half as many again. The last block takes of most
    tokens no more than what attention reads, see `models.stack`; that is left out where it does.
    """
    rows, count, prefix = config.train.batch_rows, config.train.accumulate, slots(config, lengths)
    forward = _forward_flops(shape, base, prefix, prefix / 2) * count
    forward += rows * _forward_flops(shape, base, lengths.row, prefix + lengths.row / 2)
    every = config.train.prompt_loss_weight > 0 or config.adapter.dropout > 0
    if not every and shape.mlp != "experts":
        others = prefix * count + rows * (lengths.row - lengths.target)
        modules = base.decoder.linear_modules()
        behind = sum(a * b for name, (a, b) in modules.items() if name not in _BEFORE_ATTENTION)
        forward -= others * 2 * behind
    forward += rows * lengths.target * 2 * shape.model_dim * shape.vocab_size
    return forward * (3 if config.distill.weight > 0 else 2)


def estimate_training(
    config: ConfigDict, shape: DecoderConfig, topology: Topology, lengths: Lengths
) -> Measured:
    """The training step."""
    mesh = abstract_mesh(config, topology.count)
    base = abstract_base(config, shape, mesh)
    state = abstract_state(config, base, mesh)
    taught = config.distill.weight > 0
    batches = abstract_batch(config, lengths, mesh, taught=taught)
    parts = {
        "weights": device_bytes(base.state),
        "adapter": device_bytes(state.adapter),
        "optimizer": device_bytes(state.optimizer),
        "batch": device_bytes(batches),
        "cache": 0,
    }
    layer, width = Layer.of(shape, base), _itemsize(base)
    tensor, over, fsdp = mesh.shape["tensor"], rows_over(mesh), mesh.shape["fsdp"]
    count = config.train.accumulate
    rows = config.train.batch_rows // count // over
    prefix = slots(config, lengths)
    # What doesn't go round every chip reads whole, see `models.sharding.split_hidden`.
    alone = prefix % over != 0
    tokens = (prefix if alone else prefix / over) + rows * lengths.row
    keys = shape.num_layers * prefix * layer.keys / split(shape.num_kv_heads, tensor) * width
    if taught:
        parts["cache"] = round(keys)

    # One token in one layer, as the backward pass wants it: residual stream before and after each
    # norm, the norms' float32, and what is inside attention and MLP.
    inside = width * (5 * shape.model_dim + layer.inner / tensor) + 8 * shape.model_dim
    kept = width * shape.model_dim if config.model.remat else inside
    heads, vocab = split(shape.num_heads, tensor), split(shape.vocab_size, tensor)
    scores = rows * shape.num_heads / heads * lengths.row * (prefix + lengths.row)
    logits = rows * lengths.target * shape.vocab_size / vocab
    whole = 2 * layer.stored / tensor if fsdp > 1 else 0  # this layer's weights and the next one's
    working = 2 * tokens * inside + 3 * 4 * max(scores, logits) + whole
    gradients = parts["adapter"] * (1 if count == 1 else 2)
    temporaries = shape.num_layers * tokens * kept + keys + working + gradients

    passes = (3 if config.model.remat else 2) + taught
    once = 3 if taught else 2
    flops = step_flops(config, shape, base, lengths)
    if alone:
        flops += (over - 1) * count * once * _forward_flops(shape, base, prefix, prefix / 2)
    flops *= passes / once / topology.count
    reads = 2 * passes * count  # of every layer's weights: for the prefix and for the rows
    stored = shape.num_layers * layer.stored / tensor
    memory = reads * stored * (3 if fsdp > 1 else 1) + passes * count * shape.num_layers * (
        2 * tokens * inside
    )
    collectives = []
    if fsdp > 1:
        collectives.append(_collective("all-gather", stored, fsdp, reads))
    if tensor > 1:
        summed = tokens * shape.model_dim * width
        times = 2 * passes * count * shape.num_layers
        collectives.append(_collective("all-reduce", summed, tensor, times))
    if over > 1:
        collectives.append(_collective("all-reduce", parts["adapter"], over, 1))
    return _estimated(
        "training step",
        parts,
        config.train.batch_rows * lengths.row * (1 + taught) + count * lengths.prefix,
        temporaries,
        flops,
        memory,
        collectives,
    )


def estimate_decoding(
    config: ConfigDict, shape: DecoderConfig, topology: Topology, lengths: Lengths
) -> Measured:
    """Decoding's loop over new tokens, with the whole cache held."""
    mesh = abstract_mesh(config, topology.count)
    base = abstract_base(config, shape, mesh)
    state = abstract_state(config, base, mesh)
    layer, width = Layer.of(shape, base), _itemsize(base)
    tensor, over, fsdp = mesh.shape["tensor"], rows_over(mesh), mesh.shape["fsdp"]
    new = config.eval.max_new_tokens
    rows = config.eval.batch_rows / (over if config.eval.batch_rows % over == 0 else 1)
    prefix = slots(config, lengths)
    cached = shape.num_layers * (prefix + rows * (lengths.query + new)) * layer.keys * width
    cache = cached / split(shape.num_kv_heads, tensor)
    parts = {
        "weights": device_bytes(base.state),
        "adapter": device_bytes(serving_adapter(config, state.adapter)),
        "optimizer": 0,
        "batch": round(rows * new * 4),
        "cache": round(cache),
    }
    each = _forward_flops(shape, base, 1, prefix + lengths.query + new / 2)
    flops = rows * new * (each + 2 * shape.model_dim * shape.vocab_size) / tensor
    stored = shape.num_layers * layer.stored / tensor
    whole = 2 * layer.stored / tensor if fsdp > 1 else 0
    logits = rows * shape.vocab_size / split(shape.vocab_size, tensor) * 4
    collectives = []
    if fsdp > 1:
        collectives.append(_collective("all-gather", stored, fsdp, new))
    if tensor > 1:
        summed = rows * shape.model_dim * width
        collectives.append(_collective("all-reduce", summed, tensor, 2 * new * shape.num_layers))
    # A new cache is written beside the one that is read.
    return _estimated(
        "decode",
        parts,
        config.eval.batch_rows * new,
        cache + whole + 2 * logits,
        flops,
        new * (stored * (3 if fsdp > 1 else 1) + cache),
        collectives,
    )


def _forward_flops(shape: DecoderConfig, base: Base, tokens: float, seen: float) -> float:
    """Of `tokens` tokens through all layers, each attending to `seen` slots on average."""
    layer = Layer.of(shape, base)
    return shape.num_layers * tokens * (2 * layer.kernels + 4 * layer.attended * seen)


def _itemsize(base: Base) -> int:
    return base.state["embedding"].get_value().dtype.itemsize


def _collective(kind: str, nbytes: float, devices: int, times: float) -> Collective:
    size = Tensor("u8", (round(nbytes),))
    return Collective(kind, round(nbytes), devices, times, (size,), "")


def _estimated(
    name: str,
    parts: dict[str, int],
    tokens: int,
    temporaries: float,
    flops: float,
    memory: float,
    collectives: list[Collective],
) -> Measured:
    return Measured(
        name,
        parts,
        tokens,
        temporaries=round(temporaries),
        flops=flops,
        memory_bytes=memory,
        collectives=tuple(collectives),
        wire_bytes=sum(one.wire_bytes for one in collectives),
    )
