"""What a model thinks of the gold completions: its likelihood, and its distance to another one.

Everything is teacher-forced: the completions are given, and read behind either prompt.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
from flax import nnx
from jaxtyping import Array, Float

from pintern.adapters.adapter import Adapter
from pintern.assemble import Parts, split_decoder
from pintern.evaluation.run import InferencePrompt
from pintern.models.shared_prefix import Batch, cross_entropy, target_logits
from pintern.prompts.rows import Row
from pintern.prompts.task import Example
from pintern.training.batches import Shape, make_batch, round_up
from pintern.training.losses import kl_divergence

_ROWS = 16  # at once

Side = tuple[Adapter | None, InferencePrompt]
"""A model and what stands in front of its queries."""


def divergence(parts: Parts, teacher: Side, student: Side, examples: Sequence[Example]) -> float:
    """KL(teacher ‖ student), nats per token of the gold completions, EOS included.

    Args:
      parts: base and prompts.
      teacher: adapter and prompt.
      student: likewise.
      examples: with their completions.
    """
    graph, base = split_decoder(parts.checkpoint)
    total = tokens = 0.0
    for one, other in zip(
        _batches(parts, teacher[1], examples), _batches(parts, student[1], examples), strict=True
    ):
        kl, count = _kl(graph, base, teacher[0], one, student[0], other)
        total, tokens = total + float(kl), tokens + float(count)
    return total / tokens


def negative_log_likelihood(
    parts: Parts, adapter: Adapter | None, prompt: InferencePrompt, examples: Sequence[Example]
) -> float:
    """−log p of the gold completions, nats per token, EOS included."""
    graph, base = split_decoder(parts.checkpoint)
    total = tokens = 0.0
    for batch in _batches(parts, prompt, examples):
        nats, count = _nats(graph, base, adapter, batch)
        total, tokens = total + float(nats), tokens + float(count)
    return total / tokens


@functools.partial(jax.jit, static_argnums=0)
def _kl(
    graph: nnx.GraphDef,
    base: nnx.State,
    teacher: Adapter | None,
    wanted: Batch,
    student: Adapter | None,
    given: Batch,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    decoder = nnx.merge(graph, base)
    p = target_logits(decoder, wanted, adapter=teacher)
    q = target_logits(decoder, given, adapter=student)
    weights = given.target_weights
    return kl_divergence(p, q, weights, temperature=1.0), weights.sum()


@functools.partial(jax.jit, static_argnums=0)
def _nats(
    graph: nnx.GraphDef, base: nnx.State, adapter: Adapter | None, batch: Batch
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    logits = target_logits(nnx.merge(graph, base), batch, adapter=adapter)
    weights = batch.target_weights
    return cross_entropy(logits, batch.target_tokens, weights), weights.sum()


def _batches(parts: Parts, prompt: InferencePrompt, examples: Sequence[Example]) -> list[Batch]:
    """The examples behind a prompt, batches of one shape, the last filled up without targets."""
    prompts = parts.prompts
    pieces = prompts.renderer.pieces(examples)
    shots = prompts.shots_for([example.query for example in examples], prompt.shots)
    rows = [prompts.renderer.row(piece, shot) for piece, shot in zip(pieces, shots, strict=True)]
    prefix = prompts.prefix(prompt.keep_rate)
    shape = Shape(
        round_up(len(prefix)),
        round_up(max(len(row.read) for row in rows)),
        round_up(max(len(row.tokens) - row.start for row in rows)),
    )
    filler = Row(rows[0].tokens, len(rows[0].tokens))
    rows += [filler] * (-len(rows) % _ROWS)
    return [
        make_batch(prefix, rows[first : first + _ROWS], shape)
        for first in range(0, len(rows), _ROWS)
    ]
