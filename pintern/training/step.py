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
from pintern.models.prompt_loss import prompt_nats
from pintern.models.shared_prefix import (
    Batch,
    cross_entropy,
    read_batch,
    target_logits,
    token_nats,
)
from pintern.training.losses import kl_divergence


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


def reset_moments(state: optax.OptState) -> optax.OptState:
    """Adam's moments, and its count of the steps they were gathered over, as at the start.

    The learning-rate schedule has a count of its own, which goes on: a stage change is no new
    warm-up.
    """

    def fresh(part: Any) -> Any:
        if isinstance(part, optax.ScaleByAdamState):
            return jax.tree.map(jnp.zeros_like, part)
        return part

    return jax.tree.map(fresh, state, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState))


def loss_options(config: ConfigDict) -> dict[str, Any]:
    """What a config says of the loss, as the keyword arguments of `make_step`."""
    return {
        "distill_weight": config.distill.weight,
        "temperature": config.distill.temperature,
        "by_confidence": config.distill.by_confidence,
        "top_k": config.distill.top_k,
        "distill_labelled": config.distill.labelled,
        "ce_weight": config.train.ce_weight,
        "prompt_loss_weight": config.train.prompt_loss_weight,
        "balance_weight": config.train.balance_weight,
    }


def make_step(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    *,
    distill_weight: float = 0.0,
    temperature: float = 1.0,
    by_confidence: bool = False,
    top_k: int = 0,
    distill_labelled: bool = True,
    ce_weight: float = 1.0,
    prompt_loss_weight: float = 0.0,
    balance_weight: float = 0.0,
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """Builds the step `(state, base, batches, teacher, key) -> state, metrics`.

    `batches` is a TrainBatch whose leaves have a leading micro-batch axis; gradients are summed
    over it and divided by the whole step's target tokens, so that accumulation changes memory and
    nothing else. The base's parameters are an argument: no gradient or optimizer state is made for
    them, and they can be sharded and donated apart.

    With `by_confidence` a row's KL counts by the probability that the teacher gives the row's whole
    completion. Where it contradicts a gold completion, or wrote one that it half believes in, it
    is followed the less. Without `distill_labelled` it counts only where the teacher wrote the
    completion. `top_k`: see `kl_divergence`.

    `prompt_loss_weight` w adds w times the cross-entropy of the labelled rows' prompt tokens (see
    `prompt_loss`), and w of each to the tokens that the sum is divided by: it is the weighted mean
    over the plain concatenations, with weight 1 on a completion's tokens. `ce_weight` is that of
    the cross-entropy as a whole.

    `balance_weight` counts for a mixture of experts only: the mean load-balancing loss over the
    micro-batches is added so often. A token of the shared prefix is routed, and counted, once.
    """

    def divisor(parts: dict[str, Array]) -> Array:
        if not prompt_loss_weight:
            return parts["tokens"]
        return parts["tokens"] + prompt_loss_weight * parts["prompt_tokens"]

    def loss_sum(
        adapter: Adapter, base: nnx.State, batch: TrainBatch, teacher: Teacher | None, key: Any
    ) -> tuple[Array, dict[str, Array]]:
        decoder = nnx.merge(graph, base)
        dropout_key = key if adapter.dropout > 0 else None
        reading = read_batch(
            decoder,
            batch.student,
            adapter=adapter,
            dropout_key=dropout_key,
            whole=prompt_loss_weight > 0,
        )
        logits = decoder.logits(reading.targets)
        weights = batch.student.target_weights
        gold = weights * batch.student.at_targets(batch.labelled)
        ce = cross_entropy(logits, batch.student.target_tokens, gold)
        parts = {"ce": ce, "gold_tokens": gold.sum(), "tokens": weights.sum()}
        loss = ce
        if prompt_loss_weight:
            nats, count = prompt_nats(decoder, batch.student, reading, batch.labelled)
            parts |= {"prompt": nats, "prompt_tokens": count}
            loss += prompt_loss_weight * nats
        if ce_weight != 1.0:
            loss *= ce_weight
        if reading.routed is not None:
            # Times the tokens, because the sum over micro-batches is divided by theirs.
            parts["balance"] = balance_loss(reading.routed) * divisor(parts)
            loss += balance_weight * parts["balance"]
        if batch.teacher is None:
            return loss, parts
        wanted = jax.lax.stop_gradient(
            target_logits(decoder, batch.teacher, adapter=teacher.adapter, prefix=teacher.prefix)
        )
        if by_confidence:
            nats = token_nats(wanted, batch.student.target_tokens)
            nats = batch.student.by_row(nats * weights, 0.0).sum(-1)
            weights = weights * batch.student.at_targets(jnp.exp(-nats))
        if not distill_labelled:
            weights = weights * batch.student.at_targets(1.0 - batch.labelled)
        parts["kl"] = kl_divergence(wanted, logits, weights, temperature, top_k)
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
        tokens = jnp.maximum(divisor(parts), 1.0)
        gradients = jax.tree.map(lambda g: g / tokens, gradients)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.adapter)
        metrics = {
            "loss": parts["ce"] / jnp.maximum(parts["gold_tokens"], 1.0),
            "grad_norm": optax.tree.norm(gradients),
        }
        if "kl" in parts:
            metrics["kl"] = parts["kl"] / jnp.maximum(parts["tokens"], 1.0)
        if "balance" in parts:
            metrics["balance"] = parts["balance"] / tokens
        if prompt_loss_weight:
            metrics["prompt_loss"] = parts["prompt"] / jnp.maximum(parts["prompt_tokens"], 1.0)
        return TrainState(optax.apply_updates(state.adapter, updates), optimizer_state), metrics

    return step
