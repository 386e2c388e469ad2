"""The cross-entropy of prompt tokens, where the prompt is to be learned by heart as well.

In the plain concatenation [soft prompt; prefix; row] of each row, every prompt token that something
stands in front of is predicted, as the completion is: prefix and row up to the completion's first
token. A prefix token occurs once in the batch and once in each row's concatenation, so it counts
once per row of its group. The row's first token is predicted by what ends the prefix. Without a
soft prompt the very first token (BOS) is predicted by nothing.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pintern.models.decoder import Decoder
from pintern.models.shared_prefix import Batch, Reading, token_nats


def prompt_nats(
    decoder: Decoder, batch: Batch, reading: Reading, row_weights: Float[Array, "group row"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum of −log p over the prompt tokens of every row's concatenation, and how many there are.

    No more than one pack's logits are held at once per lane, or one prefix's per group; the
    backward pass makes them again. So devices that split the rows go through their own at once.

    Args:
      decoder: base model.
      batch: groups of rows.
      reading: of this batch, its prefix read with it.
      row_weights: what each row counts.
    """
    group, _, slot = batch.pack_tokens.shape
    lane, width = batch.target_rows.shape[1], reading.rows.shape[-1]

    @jax.checkpoint
    def nats(
        hidden: Float[Array, "*owner slot model"],
        tokens: Int[Array, "*owner slot"],
        weights: Float[Array, "*owner slot"],
    ) -> Float[Array, "*owner"]:
        return jnp.sum(token_nats(decoder.logits(hidden), tokens) * weights, axis=-1)

    # What stands before the row: `[group, 1, model]`, and whether there is anything.
    last = jnp.zeros((group, 1, width), reading.rows.dtype)
    there = jnp.zeros((group, 1), bool)
    prefix_sum = prefix_count = jnp.zeros(group)
    if reading.prefix is not None:
        virtual = reading.prefix.shape[1] - batch.prefix_tokens.shape[1]
        valid = jnp.pad(batch.prefix_valid, ((0, 0), (virtual, 0)), constant_values=1)
        before = _slot_before(valid)
        at, ahead = before[:, virtual:-1], before[:, -1:]
        weights = ((batch.prefix_valid > 0) & (at >= 0)).astype(jnp.float32)
        prefix_sum = nats(_gather(reading.prefix, at), batch.prefix_tokens, weights)
        prefix_count = weights.sum(-1)
        last, there = _gather(reading.prefix, ahead), ahead >= 0

    # A row's tokens up to the slot that predicts the completion's first one.
    first = batch.at_tokens(batch.by_row(batch.target_slots, slot).min(-1))
    prompt = (batch.pack_rows > 0) & (jnp.arange(slot) <= first)
    before = _slot_before(batch.pack_rows)[..., :-1]
    row_before = jnp.take_along_axis(batch.pack_rows, jnp.maximum(before, 0), axis=2)
    before = jnp.where(row_before == batch.pack_rows, before, -1)  # of its own row
    counted = (prompt & ((before >= 0) | there[..., None])).astype(jnp.float32)
    counted *= batch.at_tokens(row_weights)

    def one_pack(pack: tuple[Array, ...]) -> Array:
        hidden, before, tokens, weights = pack
        own = _gather(hidden, before)
        return nats(jnp.where((before >= 0)[..., None], own, last[:, None]), tokens, weights)

    def in_turn(x: Array) -> Array:
        by_lane = x.reshape(group, lane, -1, *x.shape[2:])
        return jnp.moveaxis(by_lane, 2, 0)

    by_pack = (reading.rows, before, batch.pack_tokens, counted)
    pack_sum = jax.lax.map(one_pack, jax.tree.map(in_turn, by_pack))
    rows = row_weights.sum(-1)
    return (
        jnp.sum(prefix_sum * rows) + jnp.sum(pack_sum),
        jnp.sum(prefix_count * rows) + jnp.sum(counted),
    )


def _slot_before(valid: Int[Array, "*batch slot"]) -> Int[Array, "*batch slot+1"]:
    """Last real slot in front of each slot and, at the end, of the whole; −1 is none."""
    slots = jnp.where(valid > 0, jnp.arange(valid.shape[-1]), -1)
    latest = jax.lax.cummax(slots, axis=slots.ndim - 1)
    return jnp.pad(latest, [(0, 0)] * (slots.ndim - 1) + [(1, 0)], constant_values=-1)


def _gather(
    hidden: Float[Array, "*owner slot model"], at: Int[Array, "*owner wanted"]
) -> Float[Array, "*owner wanted model"]:
    return jnp.take_along_axis(hidden, jnp.maximum(at, 0)[..., None], axis=-2)
