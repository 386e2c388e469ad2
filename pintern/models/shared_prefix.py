"""Shared prefix + rows: what recurs is read once per group, what varies attends to it.

A batch of 8 rows behind a 448-token template costs 448 + 8·T tokens instead of 8·(448 + T), and
gives the loss and gradients of the plain concatenation, because a prefix token never attends to a
row and so its keys and values are the same for every row of the group.
"""

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

from pintern.adapters.adapter import Adapter
from pintern.models.decoder import Cache, Decoder
from pintern.models.experts import Routed
from pintern.models.joint import read_jointly, reads_jointly
from pintern.models.stack import at_places


@flax.struct.dataclass
class Batch:
    """Groups of rows, each group under one prefix. Padding stands behind what is real.

    Rows differ in length, so several stand one behind another, each of which sees the prefix and
    itself: a pack, which is padded at its end. The targets of several packs stand one behind
    another likewise. Such packs, as many as there are to a list and in their order, are a lane.
    Devices that split the rows need a lane each.

    Attributes:
      prefix_tokens: `[group, prefix]`; the prefix axis may be 0.
      prefix_valid: `[group, prefix]`, 1 at real tokens.
      pack_tokens: `[group, pack, slot]`.
      pack_rows: `[group, pack, slot]`, which of the pack's rows the token is of, from 1; 0 is
        padding.
      target_rows: `[group, lane, target]`, which of the lane's rows the target is of, from 0.
      target_slots: `[group, lane, target]`, slot of that row's pack whose hidden state predicts it.
      target_tokens: `[group, lane, target]`.
      target_weights: `[group, lane, target]`, 0 where padded.
      packed: rows of a pack.
    """

    prefix_tokens: Int[Array, "group prefix"]
    prefix_valid: Int[Array, "group prefix"]
    pack_tokens: Int[Array, "group pack slot"]
    pack_rows: Int[Array, "group pack slot"]
    target_rows: Int[Array, "group lane target"]
    target_slots: Int[Array, "group lane target"]
    target_tokens: Int[Array, "group lane target"]
    target_weights: Float[Array, "group lane target"]
    packed: int = flax.struct.field(pytree_node=False, default=1)

    @property
    def real_tokens(self) -> int:
        """Tokens of prefixes and packs that are no padding; of a batch on the host."""
        return int((self.prefix_valid > 0).sum() + (self.pack_rows > 0).sum())

    @property
    def texts(self) -> Int[Array, "group pack slot"] | None:
        """`pack_rows` as `Decoder` takes them: None where a pack is one row."""
        return self.pack_rows if self.packed > 1 else None

    @property
    def target_places(self) -> Int[Array, "group lane target"]:
        """Where the targets' hidden states stand among the slots of a lane's packs, one pack behind
        another: what `Decoder` can be asked for.
        """
        return self.target_rows // self.packed * self.pack_tokens.shape[2] + self.target_slots

    def at_targets(self, values: Float[Array, "group row"]) -> Float[Array, "group lane target"]:
        """What each row has, at each of its targets."""
        group, lane, _ = self.target_rows.shape
        return jnp.take_along_axis(values.reshape(group, lane, -1), self.target_rows, axis=2)

    def by_row(
        self, values: Shaped[Array, "group lane target"], other: float
    ) -> Shaped[Array, "group row target"]:
        """The values at each row's own targets, and another everywhere else."""
        group, pack, _ = self.pack_tokens.shape
        lane_rows = pack * self.packed // self.target_rows.shape[1]
        own = self.target_rows[:, :, None] == jnp.arange(lane_rows)[:, None]
        own &= self.target_weights[:, :, None] > 0
        return jnp.where(own, values[:, :, None], other).reshape(group, pack * self.packed, -1)

    def at_tokens(self, values: Shaped[Array, "group row"]) -> Shaped[Array, "group pack slot"]:
        """What each row has, at each of its tokens; anything at padding."""
        group, pack, _ = self.pack_tokens.shape
        by_pack = values.reshape(group, pack, self.packed)
        return jnp.take_along_axis(by_pack, jnp.maximum(self.pack_rows - 1, 0), axis=2)

    def positions(self, start: Int[Array, " group"]) -> Int[Array, "group pack slot"]:
        """Of each token in its row's own sequence, which begins at `start`; −1 at padding."""
        counted = positions_of(self.pack_rows, start[:, None])
        if self.packed == 1:
            return counted
        # A row begins where its number is the first so high; what was counted before is no part.
        latest = jax.lax.cummax(self.pack_rows, axis=2)
        begins = latest > jnp.pad(latest, ((0, 0), (0, 0), (1, 0)))[..., :-1]
        before = counted - start[:, None, None]
        before = jax.lax.cummax(jnp.where(begins, before, 0), axis=2)
        return jnp.where(self.pack_rows > 0, counted - before, -1)


def positions_of(
    valid: Int[Array, "*batch slot"], start: Int[Array, "*#batch"] | int = 0
) -> Int[Array, "*batch slot"]:
    """Counts real tokens (`valid` above 0) from `start`; −1 at padding, wherever it stands."""
    start = jnp.asarray(start)[..., None]
    return jnp.where(valid > 0, start + jnp.cumsum(valid > 0, -1) - 1, -1)


def prefill(
    decoder: Decoder,
    prefix_tokens: Int[Array, "group prefix"],
    prefix_valid: Int[Array, "group prefix"],
    *,
    adapter: Adapter | None = None,
) -> tuple[Cache, Int[Array, " group"]]:
    """Reads the soft prompt and the prefix once per group.

    Returns:
      the cache to read rows behind, and `[group]` the position at which rows start.
    """
    every = _has_experts(decoder)
    _, cache, start = _read_prefix(decoder, prefix_tokens, prefix_valid, adapter, every=every)
    return cache, start


def _read_prefix(
    decoder: Decoder,
    prefix_tokens: Int[Array, "group prefix"],
    prefix_valid: Int[Array, "group prefix"],
    adapter: Adapter | None,
    dropout_key: PRNGKeyArray | None = None,
    *,
    every: bool,
) -> tuple[Float[Array, "group slot model"] | None, Cache, Int[Array, " group"]]:
    """`prefill`, with the hidden states of soft prompt and prefix in front; None if both are empty.

    A padded token's hidden state means nothing. Where not `every` one is wanted, it is the first.
    """
    inputs, valid = _with_soft_prompt(decoder, prefix_tokens, prefix_valid, adapter)
    if inputs.shape[1] == 0:
        return None, Cache(), jnp.zeros(len(inputs), jnp.int32)
    one = jnp.zeros((len(inputs), 1, 1), jnp.int32)
    hidden, cache = decoder(
        inputs[:, None],
        positions_of(valid)[:, None],
        wanted=None if every else one,
        ordered=True,
        adapter=adapter,
        dropout_key=dropout_key,
    )
    return hidden[:, 0], cache.as_prefix(), valid.sum(-1)


def _has_experts(decoder: Decoder) -> bool:
    """Whether every token goes through all blocks: what routers did is counted over all of them."""
    return decoder.config.mlp == "experts"


def _with_soft_prompt(
    decoder: Decoder,
    prefix_tokens: Int[Array, "group prefix"],
    prefix_valid: Int[Array, "group prefix"],
    adapter: Adapter | None,
) -> tuple[Float[Array, "group slot embed"], Int[Array, "group slot"]]:
    """The embedded prefix behind the soft prompt, and which of its slots are real."""
    inputs = decoder.embed(prefix_tokens)
    virtual = 0 if adapter is None else adapter.num_virtual_tokens
    if virtual == 0:
        return inputs, prefix_valid
    group = len(prefix_tokens)
    soft = jnp.broadcast_to(
        adapter.soft_prompt.astype(inputs.dtype), (group, *adapter.soft_prompt.shape)
    )
    there = jnp.ones((group, virtual), prefix_valid.dtype)
    return (
        jnp.concatenate([soft, inputs], axis=1),
        jnp.concatenate([there, prefix_valid], axis=1),
    )


class Reading(NamedTuple):
    """A batch as the decoder has read it; hidden states are those after the final norm.

    Attributes:
      targets: hidden states that predict the targets.
      prefix: those of soft prompt and prefix; None if both are empty or were read before.
      rows: those of the packs. Both are None where the last block made none but the targets'.
      routed: what the routers did with the tokens, each read once; None without experts. It is what
        `experts.balance_loss` takes.
    """

    targets: Float[Array, "group lane target model"]
    prefix: Float[Array, "group prefix model"] | None
    rows: Float[Array, "group pack slot model"] | None
    routed: Routed | None


def read_batch(
    decoder: Decoder,
    batch: Batch,
    *,
    adapter: Adapter | None = None,
    dropout_key: PRNGKeyArray | None = None,
    prefix: tuple[Cache, Int[Array, " group"]] | None = None,
    whole: bool = False,
) -> Reading:
    """Reads each group's prefix once, and its rows behind it; arguments as in `target_logits`.

    `dropout_key` switches LoRA dropout on. `whole` asks for all hidden states. Else the last block
    makes those alone that predict a target; but for dropout, whose draws go by slot, and for
    experts, whose statistics are of all tokens.
    """
    every = whole or dropout_key is not None or _has_experts(decoder)
    wanted = None if every else batch.target_places
    if prefix is None and dropout_key is None and reads_jointly(decoder):
        inputs, valid = _with_soft_prompt(decoder, batch.prefix_tokens, batch.prefix_valid, adapter)
        if inputs.shape[1]:
            before, rows, routed = read_jointly(
                decoder,
                inputs,
                positions_of(valid),
                batch.pack_tokens,
                batch.positions(valid.sum(-1)),
                texts=batch.texts,
                wanted=wanted,
                adapter=adapter,
            )
            return _reading(batch, before, rows, routed, every)
    prefix_key = row_key = before = None
    if dropout_key is not None:
        prefix_key, row_key = jax.random.split(dropout_key)
    if prefix is None:
        before, *prefix = _read_prefix(
            decoder, batch.prefix_tokens, batch.prefix_valid, adapter, prefix_key, every=every
        )
    cache, start = prefix
    rows, cache = decoder(
        batch.pack_tokens,
        batch.positions(start),
        cache,
        texts=batch.texts,
        wanted=wanted,
        ordered=True,
        adapter=adapter,
        dropout_key=row_key,
    )
    return _reading(batch, before, rows, cache.routed, every)


def _reading(
    batch: Batch, before: Array | None, rows: Array, routed: Routed | None, every: bool
) -> Reading:
    if every:
        return Reading(at_places(rows, batch.target_places), before, rows, routed)
    return Reading(rows, None, None, routed)


def target_logits(
    decoder: Decoder,
    batch: Batch,
    *,
    adapter: Adapter | None = None,
    prefix: tuple[Cache, Int[Array, " group"]] | None = None,
) -> Float[Array, "group lane target vocab"]:
    """Logits at the targets only: the output matrix never sees a prompt token.

    Args:
      decoder: base model.
      batch: groups of rows.
      adapter: LoRA pairs and soft prompt; None is the base model.
      prefix: a prefilled prefix to use in place of the batch's own (a frozen teacher's, say).
    """
    return decoder.logits(read_batch(decoder, batch, adapter=adapter, prefix=prefix).targets)


@jax.custom_vjp
def token_nats(
    logits: Float[Array, "*batch vocab"], targets: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """−log p of each target, in nats.

    Its gradient, p − 1 at the target, is made in one pass over the vocabulary; JAX's own makes
    several, and keeps as many arrays of the logits' size.
    """
    return _token_nats_forward(logits, targets)[0]


def _token_nats_forward(logits: Array, targets: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    total = jax.nn.logsumexp(logits, axis=-1)
    at_target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return total - at_target, (logits, targets, total)


def _token_nats_backward(residual: tuple[Array, Array, Array], change: Array) -> tuple[Array, None]:
    logits, targets, total = residual
    hit = targets[..., None] == jnp.arange(logits.shape[-1])
    return change[..., None] * (jnp.exp(logits - total[..., None]) - hit), None


token_nats.defvjp(_token_nats_forward, _token_nats_backward)


def cross_entropy(
    logits: Float[Array, "*batch vocab"],
    targets: Int[Array, "*batch"],
    weights: Float[Array, "*batch"],
) -> Float[Array, ""]:
    """Weighted sum of −log p(target), in nats. Divide by the weights' sum for a mean."""
    return jnp.sum(token_nats(logits, targets) * weights)
