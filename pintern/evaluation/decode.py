"""Decoding behind a shared prefix: prefilled once, then rows of like length in batches.

The loop over new tokens runs on the device and stops when every row has ended; for a reader at the
terminal the same loop is run one token at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int, Key

from pintern.adapters.adapter import Adapter
from pintern.evaluation.sampling import Sampling, choose
from pintern.models.decoder import Cache, Decoder
from pintern.models.sharding import fetch
from pintern.models.shared_prefix import positions_of, prefill

_MULTIPLE = 32  # wider steps: fewer programs, each of which takes seconds to compile


class Decoding(NamedTuple):
    """Rows on their way, between two tokens.

    Attributes:
      place: tokens chosen so far.
      cache: what was read, with room for the rest.
      position: of the last chosen token, which is not read yet.
      token: the last chosen one.
      made: all chosen ones; the slots still to come hold EOS.
    """

    place: Int[Array, ""]
    cache: Cache
    position: Int[Array, " row"]
    token: Int[Array, " row"]
    made: Int[Array, "row new"]


class Generator:
    """Decodes rows behind one prefix.

    Args:
      graph: static part of the decoder.
      base: the decoder's parameters.
      adapter: LoRA pairs and soft prompt, or None for the base model.
      prefix: token ids that every row stands behind; may be empty.
      sampling: how to choose tokens.
      cached: prefill the prefix once and keep it; False reads it again with every batch, as a
        server without prefix caching does (for measurements).
    """

    def __init__(
        self,
        graph: nnx.GraphDef,
        base: nnx.State,
        adapter: Adapter | None,
        prefix: Sequence[int],
        sampling: Sampling,
        *,
        cached: bool = True,
    ):
        self._base, self._adapter = base, adapter
        self._sampling = sampling
        self._prefix = np.asarray(prefix, np.int32)[None]
        self._read = functools.partial(_read_prefix, graph)
        self._start = functools.partial(_start_rows, graph)
        self._whole = functools.partial(_decode, graph, sampling)
        self._begin = functools.partial(_begin_jit, graph, sampling)
        self._advance = functools.partial(_advance_jit, graph, sampling)
        self._prefilled = self._read(base, adapter, self._prefix) if cached else None

    def __call__(
        self,
        rows: Sequence[Sequence[int]],
        *,
        batch_rows: int,
        seed: int = 0,
        first_index: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[int]]:
        """New tokens of each row, EOS left out, in the order given. Without EOS there are
        `max_new_tokens` of them.

        Args:
          rows: token ids, at least one per row.
          batch_rows: rows decoded at once; the last batch is filled up with copies.
          seed: of sampling. Each row has a stream of its own, so that its text doesn't depend on
            what it is batched with.
          first_index: number of the first row, where these are a part of a longer list: a row's
            stream depends on the seed and on its number.
          progress: told how many rows are done.
        """
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        done: list[list[int]] = [[] for _ in rows]
        for first in range(0, len(order), batch_rows):
            chosen = order[first : first + batch_rows]
            filled = [chosen[i % len(chosen)] for i in range(batch_rows)]
            tokens, valid = pad_rows([rows[i] for i in filled])
            keys = _row_keys(seed, [first_index + i for i in filled])
            made = fetch(self.decode(*self.prefill(tokens, valid), keys))
            for place, i in enumerate(chosen):
                done[i] = _until(made[place], self._sampling.eos)
            if progress:
                progress(len(chosen))
        return done

    def stream(self, row: Sequence[int], *, seed: int = 0, index: int = 0) -> Iterator[int]:
        """New tokens of one row, EOS left out, each as soon as it is chosen.

        Args:
          row: token ids, at least one.
          seed: of sampling.
          index: number of the row; as number `index` of a list it gets the same tokens.
        """
        tokens, valid = pad_rows([row])
        keys = _row_keys(seed, [index])
        state = self._begin(*self.prefill(tokens, valid), keys)
        for place in range(1, self._sampling.max_new_tokens + 1):
            token = int(state.token[0])
            if token == self._sampling.eos:
                return
            yield token
            if place < self._sampling.max_new_tokens:
                state = self._advance(self._base, self._adapter, state, keys, place + 1)

    def prefill(self, tokens: np.ndarray, valid: np.ndarray) -> tuple[Cache, Array, Array]:
        """Reads `[row, slot]` tokens: cache, logits of the next token, its position."""
        prefilled = self._prefilled or self._read(self._base, self._adapter, self._prefix)
        return self._start(self._base, self._adapter, prefilled, tokens, valid)

    def decode(
        self, cache: Cache, logits: Array, position: Array, keys: Key[Array, " row"]
    ) -> Int[Array, "row new"]:
        """Continues prefilled rows to EOS or the limit; slots after EOS hold EOS."""
        return self._whole(self._base, self._adapter, cache, logits, position, keys)


def pad_rows(
    rows: Sequence[Sequence[int]], multiple: int = _MULTIPLE
) -> tuple[np.ndarray, np.ndarray]:
    """Right-pads to a multiple of `multiple` slots: `[row, slot]` tokens and validity."""
    width = -(-max(len(row) for row in rows) // multiple) * multiple
    tokens = np.zeros((len(rows), width), np.int32)
    valid = np.zeros_like(tokens)
    for r, row in enumerate(rows):
        tokens[r, : len(row)] = row
        valid[r, : len(row)] = 1
    return tokens, valid


def _until(tokens: np.ndarray, eos: int) -> list[int]:
    ends = np.flatnonzero(tokens == eos)
    return tokens[: ends[0] if len(ends) else len(tokens)].tolist()


@functools.partial(jax.jit, static_argnums=0)
def _read_prefix(
    graph: nnx.GraphDef, base: nnx.State, adapter: Adapter | None, prefix: Array
) -> tuple[Cache, Array]:
    return prefill(nnx.merge(graph, base), prefix, jnp.ones_like(prefix), adapter=adapter)


@functools.partial(jax.jit, static_argnums=0)
def _start_rows(
    graph: nnx.GraphDef,
    base: nnx.State,
    adapter: Adapter | None,
    prefilled: tuple[Cache, Array],
    tokens: Array,
    valid: Array,
) -> tuple[Cache, Array, Array]:
    decoder: Decoder = nnx.merge(graph, base)
    cache, start = prefilled
    positions = positions_of(valid[None], start[:, None])
    hidden, cache = decoder(tokens[None], positions, cache, adapter=adapter)
    last = valid.shape[-1] - 1 - jnp.argmax(valid[:, ::-1], axis=-1)
    at_last = jnp.take_along_axis(hidden[0], last[:, None, None], axis=1)[:, 0]
    return cache, decoder.logits(at_last), positions[0].max(-1) + 1


@functools.partial(jax.jit, static_argnums=(0, 1))
def _decode(
    graph: nnx.GraphDef,
    sampling: Sampling,
    base: nnx.State,
    adapter: Adapter | None,
    cache: Cache,
    logits: Array,
    position: Array,
    keys: Key[Array, " row"],
) -> Int[Array, "row new"]:
    state = _begin(sampling, cache, logits, position, keys)
    until = sampling.max_new_tokens
    return _advance(nnx.merge(graph, base), sampling, adapter, state, keys, until).made


@functools.partial(jax.jit, static_argnums=(0, 1))
def _begin_jit(
    graph: nnx.GraphDef,
    sampling: Sampling,
    cache: Cache,
    logits: Array,
    position: Array,
    keys: Array,
) -> Decoding:
    del graph  # taken so that all three are called alike
    return _begin(sampling, cache, logits, position, keys)


# The state is given away: otherwise each token would cost a copy of the cache.
@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def _advance_jit(
    graph: nnx.GraphDef,
    sampling: Sampling,
    base: nnx.State,
    adapter: Adapter | None,
    state: Decoding,
    keys: Key[Array, " row"],
    until: int | Array,
) -> Decoding:
    return _advance(nnx.merge(graph, base), sampling, adapter, state, keys, until)


def _begin(
    sampling: Sampling, cache: Cache, logits: Array, position: Array, keys: Key[Array, " row"]
) -> Decoding:
    """Chooses the first token, and makes room for all."""
    limit = sampling.max_new_tokens
    first = choose(sampling, logits, keys, 0)
    made = jnp.full((first.shape[0], limit), sampling.eos, jnp.int32).at[:, 0].set(first)
    room = cache.with_room(limit)
    room = room.replace(length=jnp.asarray(room.length, jnp.int32))
    return Decoding(jnp.int32(1), room, position, first, made)


def _advance(
    decoder: Decoder,
    sampling: Sampling,
    adapter: Adapter | None,
    state: Decoding,
    keys: Key[Array, " row"],
    until: int | Array,
) -> Decoding:
    """Goes on until every row has ended, or `until` tokens are chosen."""

    def goes_on(state: Decoding) -> Array:
        return (state.place < until) & jnp.any(state.token != sampling.eos)

    def body(state: Decoding) -> Decoding:
        place, cache, position, token, made = state
        hidden, cache = decoder(
            token[None, :, None], position[None, :, None], cache, adapter=adapter
        )
        following = choose(sampling, decoder.logits(hidden[0, :, 0]), keys, place)
        following = jnp.where(token == sampling.eos, sampling.eos, following)
        made = jax.lax.dynamic_update_slice_in_dim(made, following[:, None], place, axis=1)
        return Decoding(place + 1, cache, position + 1, following, made)

    return jax.lax.while_loop(goes_on, body, state)


def _row_keys(seed: int, indices: Sequence[int]) -> Key[Array, " row"]:
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.asarray(indices))
