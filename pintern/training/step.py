"""One optimizer step: loss on completions, KL to a prompted teacher, AdamW on the adapter alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray
from ml_collections import ConfigDict

from pintern.adapters.adapter import Adapter
from pintern.models.decoder import Cache
from pintern.models.experts import balance_loss
from pintern.models.shared_prefix import (
    Batch,
    cross_entropy,
    target_logits,
    target_logits_and_routing,
    token_nats,
)


@flax.struct.dataclass
class TrainBatch:
    """What one micro-batch trains on.

    Attributes:
      student: rows behind the level's prompt.
      labelled: `[group, row]`, 1 where the completion is gold and counts in the cross-entropy, 0
        where the teacher wrote it and only its distribution is learned.
      teacher: the same completions behind the full prompt, or None without distillation. Its
        prefix is not read from here, see `Teacher`.
    """

    student: Batch
    labelled: Float[Array, "group row"]
    teacher: Batch | None = None


class TrainState(NamedTuple):
    """All that changes from step to step.

    Attributes:
      adapter: what is trained.
      optimizer: optax state, over the adapter only.
    """

    adapter: Adapter
    optimizer: optax.OptState


@flax.struct.dataclass
class Teacher:
    """The model whose answers behind the full prompt are learned; it is never trained.

    Attributes:
      adapter: what it has on, or None for the base model.
      prefix: the full prompt, read once a run: cache, and `[group]` where rows start.
    """

    adapter: Adapter | None
    prefix: tuple[Cache, Int[Array, " group"]]


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """AdamW with warm-up, decay and clipping of the global gradient norm."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(learning_rate(config), b1=0.9, b2=0.99, weight_decay=config.weight_decay),
    )


def learning_rate(config: ConfigDict) -> optax.Schedule:
    """Linear warm-up to the peak, then cosine, linear or no decay to `final_rate` of it."""
    warmup = round(config.warmup * config.steps)
    rest = max(config.steps - warmup, 1)
    peak, low = config.learning_rate, config.final_rate
    after = {
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest, alpha=low),
        "linear": lambda: optax.linear_schedule(peak, low * peak, rest),
        "constant": lambda: optax.constant_schedule(peak),
    }[config.decay]()
    # Starts at 1/warmup, not at 0: the first step is not wasted.
    before = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1))
    return optax.join_schedules([before, after], [warmup])


def kl_divergence(
    teacher: Float[Array, "*batch vocab"],
    student: Float[Array, "*batch vocab"],
    weights: Float[Array, "*batch"],
    temperature: float,
) -> Float[Array, ""]:
    """Weighted sum of T²·KL(teacher ‖ student) at temperature T, in nats."""
    p = jax.nn.log_softmax(teacher / temperature, axis=-1)
    q = jax.nn.log_softmax(student / temperature, axis=-1)
    return temperature**2 * jnp.sum(jnp.sum(jnp.exp(p) * (p - q), axis=-1) * weights)


def make_step(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    *,
    distill_weight: float = 0.0,
    temperature: float = 1.0,
    by_confidence: bool = False,
    balance_weight: float = 0.0,
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """Builds the step `(state, base, batches, teacher, key) -> state, metrics`.

    `batches` is a TrainBatch whose leaves have a leading micro-batch axis; gradients are summed
    over it and divided by the whole step's target tokens, so that accumulation changes memory and
    nothing else. The base's parameters are an argument: no gradient or optimizer state is made for
    them, and they can be sharded and donated apart.

    With `by_confidence` a row's KL counts by the probability that the teacher gives the row's whole
    completion. Where it contradicts a gold completion, or wrote one that it half believes in, it
    is followed the less.

    `balance_weight` counts for a mixture of experts only: the mean load-balancing loss over the
    micro-batches is added so often. A token of the shared prefix is routed, and counted, once.
    """

    def loss_sum(
        adapter: Adapter, base: nnx.State, batch: TrainBatch, teacher: Teacher | None, key: Any
    ) -> tuple[Array, dict[str, Array]]:
        decoder = nnx.merge(graph, base)
        dropout_key = key if adapter.dropout > 0 else None
        logits, routed = target_logits_and_routing(
            decoder, batch.student, adapter=adapter, dropout_key=dropout_key
        )
        weights = batch.student.target_weights
        gold = weights * batch.labelled[..., None]
        ce = cross_entropy(logits, batch.student.target_tokens, gold)
        parts = {"ce": ce, "gold_tokens": gold.sum(), "tokens": weights.sum()}
        loss = ce
        if routed is not None:
            # Times the tokens, because the sum over micro-batches is divided by theirs.
            parts["balance"] = balance_loss(routed) * parts["tokens"]
            loss += balance_weight * parts["balance"]
        if batch.teacher is None:
            return loss, parts
        wanted = jax.lax.stop_gradient(
            target_logits(decoder, batch.teacher, adapter=teacher.adapter, prefix=teacher.prefix)
        )
        if by_confidence:
            nats = jnp.sum(token_nats(wanted, batch.student.target_tokens) * weights, axis=-1)
            weights = weights * jnp.exp(-nats)[..., None]
        parts["kl"] = kl_divergence(wanted, logits, weights, temperature)
        return loss + distill_weight * parts["kl"], parts

    def step(
        state: TrainState,
        base: nnx.State,
        batches: TrainBatch,
        teacher: Teacher | None,
        key: PRNGKeyArray,
    ) -> tuple[TrainState, dict[str, Array]]:
        def micro(total: Any, xs: tuple[TrainBatch, PRNGKeyArray]) -> tuple[Any, None]:
            gradients, parts = jax.grad(loss_sum, has_aux=True)(
                state.adapter, base, xs[0], teacher, xs[1]
            )
            return jax.tree.map(jnp.add, total, (gradients, parts)), None

        count = batches.labelled.shape[0]
        keys = jax.random.split(key, count)
        first = jax.tree.map(lambda x: x[0], (batches, keys))
        total = jax.grad(loss_sum, has_aux=True)(state.adapter, base, first[0], teacher, first[1])
        if count > 1:
            rest = jax.tree.map(lambda x: x[1:], (batches, keys))
            total, _ = jax.lax.scan(micro, total, rest)
        gradients, parts = total
        tokens = jnp.maximum(parts["tokens"], 1.0)
        gradients = jax.tree.map(lambda g: g / tokens, gradients)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.adapter)
        metrics = {
            "loss": parts["ce"] / jnp.maximum(parts["gold_tokens"], 1.0),
            "grad_norm": optax.tree.norm(gradients),
        }
        for name in ("kl", "balance"):
            if name in parts:
                metrics[name] = parts[name] / tokens
        return TrainState(optax.apply_updates(state.adapter, updates), optimizer_state), metrics

    return step
