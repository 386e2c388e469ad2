"""Everything that a run compiles, compiled for a TPU that isn't here."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from launch.planning.chips import Topology
from launch.planning.measure import Measured, measure
from launch.planning.programs import (
    Lengths,
    abstract_base,
    abstract_batch,
    abstract_state,
    random_key,
    serving_adapter,
    training_step,
)
from pintern.evaluation import engine
from pintern.evaluation.places import begin
from pintern.evaluation.sampling import Sampling
from pintern.models.config import DecoderConfig
from pintern.models.sharding import make_mesh
from pintern.training.step import Teacher


def compile_training(
    config: ConfigDict,
    shape: DecoderConfig,
    topology: Topology,
    lengths: Lengths,
    *,
    effort: float = 0.0,
) -> Iterator[Measured]:
    """The training step; before it, where the config distils, the teacher's reading of its prompt.

    A program that follows one which doesn't fit is left out.
    """
    mesh = make_mesh(config.mesh.to_dict(), topology.devices)
    base, state = _base_and_state(config, shape, mesh)
    taught = config.distill.weight > 0
    teacher = None
    if taught:
        adapter = state.adapter if config.distill.teacher == "first_stage" else None
        prefix = jax.ShapeDtypeStruct((1, lengths.prefix), jnp.int32)
        measured, prefilled = measure(
            "teacher prefix",
            engine.read_prefix.lower,
            (base.split, adapter, prefix),
            {"weights": base.state, "adapter": adapter},
            tokens=lengths.prefix,
            effort=effort,
        )
        yield measured
        if prefilled is None:
            return
        teacher = Teacher(adapter, prefilled)
    batches = abstract_batch(config, lengths, mesh, taught=taught)
    rows = config.train.batch_rows
    measured, _ = measure(
        "training step",
        training_step(config, base, state, mesh).lower,
        (state, base.state, batches, teacher, random_key()),
        {
            "weights": base.state,
            "adapter": (state.adapter, teacher.adapter if teacher else None),
            "optimizer": state.optimizer,
            "batch": batches,
            "cache": teacher.prefix if teacher else (),
        },
        tokens=rows * lengths.row * (2 if taught else 1) + config.train.accumulate * lengths.prefix,
        effort=effort,
    )
    yield measured


def compile_decoding(
    config: ConfigDict,
    shape: DecoderConfig,
    topology: Topology,
    lengths: Lengths,
    *,
    eos: int = 0,
    effort: float = 0.0,
) -> Iterator[Measured]:
    """Decoding as `evaluation.decode.Generator` runs it: prefix, rows, new tokens.

    A program that follows one which doesn't fit is left out.
    """
    mesh = make_mesh(config.mesh.to_dict(), topology.devices)
    base, state = _base_and_state(config, shape, mesh)
    adapter = serving_adapter(config, state.adapter)
    held = {"weights": base.state, "adapter": adapter}
    fields, rows = config.eval, config.eval.batch_rows
    sampling = Sampling(fields.max_new_tokens, eos, fields.temperature)
    tokens = jax.ShapeDtypeStruct((1, rows, lengths.query), jnp.int32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), (1, rows)))

    measured, prefilled = measure(
        "read prefix",
        engine.read_prefix.lower,
        (base.split, adapter, jax.ShapeDtypeStruct((1, lengths.prefix), jnp.int32)),
        held,
        tokens=lengths.prefix,
        effort=effort,
    )
    yield measured
    if prefilled is None:
        return
    measured, read = measure(
        "read rows",
        engine.read_rows.lower,
        (base.split, adapter, prefilled, tokens, tokens),
        {**held, "batch": (tokens, tokens), "cache": prefilled},
        tokens=rows * lengths.query,
        effort=effort,
    )
    yield measured
    if read is None:
        return
    measured, places = measure(
        "admit rows",
        functools.partial(begin.lower, sampling),
        (prefilled, read, keys),
        {"batch": keys, "cache": (prefilled, read)},
        tokens=rows,
        effort=effort,
    )
    yield measured
    if places is None:
        return
    known = jax.ShapeDtypeStruct((1,), jnp.int32)  # no answers: nothing is guessed in a batch
    measured, _ = measure(
        "decode",
        functools.partial(engine.advance.lower, sampling),
        (base.split, adapter, places, known, rows, fields.max_new_tokens),
        {**held, "batch": places[2:], "cache": places.cache},
        tokens=rows * fields.max_new_tokens,
        loop_trips=fields.max_new_tokens - 1,
        effort=effort,
    )
    yield measured


def _base_and_state(config: ConfigDict, shape: DecoderConfig, mesh: Mesh):
    base = abstract_base(config, shape, mesh)
    return base, abstract_state(config, base, mesh)
