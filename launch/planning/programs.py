"""The programs of a run, of shapes alone: the training step, and decoding's four.

They are the run's own functions with the run's own shardings; only the arrays are missing. So a
model of any size can be compiled on a machine that could hold none of it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh, Mesh
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from pintern.adapters.adapter import Adapter, init_lora, lora_scale
from pintern.errors import UserError
from pintern.models.config import DecoderConfig
from pintern.models.decoder import Decoder
from pintern.models.layout import abstract_decoder
from pintern.models.quantize import hold_in_int8
from pintern.models.sharding import rows_over, sharding_of, traced_on
from pintern.models.shared_prefix import Batch
from pintern.models.split import SplitDecoder
from pintern.training.batches import round_up
from pintern.training.placement import batch_shardings, state_shardings
from pintern.training.step import TrainBatch, TrainState, loss_options, make_optimizer, make_step


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Tokens of what is read and written; all else of a program's shape is the config's.

    Attributes:
      prefix: of the shared prefix.
      row: of a training row, completion included.
      target: of a completion in training.
      query: of a request's row in decoding.
    """

    prefix: int
    row: int
    target: int
    query: int

    @property
    def padded(self) -> Lengths:
        """As a run's batches are padded; decoding's prefix isn't."""
        rounded = map(round_up, (self.prefix, self.row, self.target))
        return Lengths(*rounded, self.query)


@dataclasses.dataclass(frozen=True)
class Base:
    """The frozen base, of shapes with places.

    Attributes:
      decoder: of shapes.
      graph: its static part.
      state: its parameters.
    """

    decoder: Decoder
    graph: nnx.GraphDef
    state: nnx.State

    @property
    def split(self) -> SplitDecoder:
        """As decoding's programs take it."""
        return SplitDecoder.of(self.graph, self.state)


def abstract_base(config: ConfigDict, shape: DecoderConfig, mesh: Mesh | AbstractMesh) -> Base:
    """The base as `assemble.load_base` would place it on the mesh."""
    decoder = abstract_decoder(shape, config.model.remat)
    dtype = jnp.bfloat16 if config.model.dtype == "auto" else jnp.dtype(config.model.dtype)
    quantized = config.model.quantize == "int8"
    if quantized:
        hold_in_int8(decoder)
    graph, empty = nnx.split(decoder)
    where = sharding_of(mesh)

    def placed(path: str, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        held = leaf.dtype == jnp.int8 or (quantized and path.endswith("_scale"))
        return jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype if held else dtype, sharding=where(path, leaf.shape)
        )

    state = nnx.from_flat_state(
        (key, variable.replace(placed(".".join(key), variable.get_value())))
        for key, variable in nnx.to_flat_state(empty)
    )
    return Base(decoder, graph, state)


def abstract_state(config: ConfigDict, base: Base, mesh: Mesh | AbstractMesh) -> TrainState:
    """Adapter and optimizer state as a run starts with them."""
    fields, shape = config.adapter, base.decoder.config
    lora = {}
    if fields.targets:
        lora = jax.eval_shape(
            lambda key: init_lora(
                key,
                base.decoder.linear_modules(),
                shape.num_layers,
                targets=tuple(fields.targets),
                rank=fields.rank,
            ),
            jax.random.key(0),
        )
    soft = None
    if fields.soft_prompt:
        width = shape.embed_dim or shape.model_dim
        soft = jax.ShapeDtypeStruct((fields.soft_prompt, width), jnp.float32)
    scale = lora_scale(fields.alpha, fields.rank, rank_stabilised=fields.rank_stabilised)
    adapter = Adapter(lora, soft, scale=scale, dropout=fields.dropout)
    optimizer = make_optimizer(config.train)
    state = TrainState(adapter, jax.eval_shape(optimizer.init, adapter))
    return with_places(state, state_shardings(mesh, optimizer, state))


def abstract_batch(
    config: ConfigDict, lengths: Lengths, mesh: Mesh | AbstractMesh, *, taught: bool
) -> TrainBatch:
    """A step's micro-batches, placed as `placement.place_batch` places them.

    Raises:
      UserError: the rows of a micro-batch don't go round.
    """
    count = config.train.accumulate
    rows, devices = config.train.batch_rows // count, rows_over(mesh)
    if not rows or rows % devices:
        raise UserError(
            f"A micro-batch has {rows} rows (config.train.batch_rows={config.train.batch_rows}, "
            f"config.train.accumulate={count}); they are split over {devices} chips "
            "(data × fsdp of the mesh).",
            f"Give a multiple of {devices}, or more to the mesh's tensor.",
        )

    def array(*sizes: int, dtype: DTypeLike = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, 1, *sizes), dtype)

    # A lane a device, as `training.data` makes them; rows of one length stand each alone.
    targets = devices, rows // devices * lengths.target

    def batch(prefix: int) -> Batch:
        return Batch(
            prefix_tokens=array(prefix),
            prefix_valid=array(prefix),
            pack_tokens=array(rows, lengths.row),
            pack_rows=array(rows, lengths.row),
            target_rows=array(*targets),
            target_slots=array(*targets),
            target_tokens=array(*targets),
            target_weights=array(*targets, dtype=jnp.float32),
        )

    labelled = array(rows, dtype=jnp.float32)
    whole = TrainBatch(batch(lengths.prefix), labelled, batch(0) if taught else None)
    return with_places(whole, batch_shardings(mesh, whole))


def training_step(config: ConfigDict, base: Base, state: TrainState, mesh: Mesh) -> Any:
    """The jitted step `(state, base, batches, teacher, key)`, as the training loop compiles it."""
    step = make_step(base.graph, make_optimizer(config.train), **loss_options(config))
    laid = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(traced_on(mesh, step), donate_argnums=(0,), out_shardings=(laid, None))


def serving_adapter(config: ConfigDict, adapter: Adapter) -> Adapter | None:
    """What is left of an adapter beside the base in serving (see `evaluation.run`): LoRA is merged
    unless the base is quantised.
    """
    if config.model.quantize != "none":
        return adapter
    return adapter.replace(lora={}) if adapter.soft_prompt is not None else None


def random_key() -> jax.ShapeDtypeStruct:
    """The shape of a random key."""
    return jax.eval_shape(lambda: jax.random.key(0))


def with_places(tree: Any, shardings: Any) -> Any:
    """A tree of shapes, placed."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings,
    )


def parameter_count(base: Base) -> int:
    """Weights of the base."""
    return sum(leaf.size for leaf in jax.tree.leaves(base.state))
