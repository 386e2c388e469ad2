"""Decoding behind shared prefixes: the one way in which this package generates.

A prefix is prefilled once. Rows take turns in a fixed number of places: as soon as an eighth of
them have ended, the next ones are read and take over (continuous batching; Orca, OSDI 2022). In
between, tokens are chosen on the device without asking the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Int, Key, UInt32

from pintern.adapters.adapter import Adapter
from pintern.adapters.groups import by_group
from pintern.compiling import only_device
from pintern.evaluation import engine
from pintern.evaluation.drafts import known_tokens
from pintern.evaluation.places import Places, Read, admit, begin, no_rows
from pintern.evaluation.sampling import Sampling
from pintern.evaluation.turns import Service, pad_rows
from pintern.evaluation.unroll import unrolled
from pintern.models.cache import join_prefixes
from pintern.models.split import SplitDecoder

_TOKENS_AT_ONCE = 8192  # fewer take an accelerator as long: it waits for the weights
_RATIO = 16  # rows that are so much shorter than others are served after them, in less room


class Generator:
    """Decodes rows behind one prefix; or each behind one of several (`together`).

    Args:
      graph: static part of the decoder.
      base: the decoder's parameters.
      adapter: LoRA pairs and soft prompt, or None for the base model.
      prefix: token ids that every row stands behind; may be empty.
      sampling: how to choose tokens.
      cached: prefill the prefix once and keep it; False reads it again with every row, as a server
        without prefix caching does (for measurements). Soft prompts are kept in any case.
      answers: token ids of known ones, from which `sampling.draft_tokens` are guessed.

    Attributes:
      tokens_at_once: that are read in one call, if there are rows and places for as many.
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
        answers: Sequence[Sequence[int]] = (),
    ):
        self._in_row = () if cached else tuple(prefix)
        self._prepare(graph, base, [(adapter, prefix if cached else ())], sampling, answers)
        self._adapter = adapter

    @classmethod
    def together(
        cls,
        graph: nnx.GraphDef,
        base: nnx.State,
        members: Sequence[tuple[Adapter | None, Sequence[int]]],
        sampling: Sampling,
    ) -> Generator:
        """A generator whose rows belong to members, each with an adapter and a prefix of its own.

        One batch serves all of them: the base's maps meet the tokens of all members in one product.
        """
        self = cls.__new__(cls)
        self._in_row = ()
        self._prepare(graph, base, members, sampling)
        self._adapter = by_group([adapter for adapter, _ in members])
        return self

    def _prepare(
        self,
        graph: nnx.GraphDef,
        base: nnx.State,
        members: Sequence[tuple[Adapter | None, Sequence[int]]],
        sampling: Sampling,
        answers: Sequence[Sequence[int]] = (),
    ) -> None:
        if _is_unrolled(base):
            graph, base = unrolled(graph, base)
        self.tokens_at_once = 0 if jax.default_backend() == "cpu" else _TOKENS_AT_ONCE
        self._base, self._sampling = SplitDecoder.of(graph, base), sampling
        self._groups = len(members)
        self._known = jnp.asarray(known_tokens(answers, sampling.eos))
        self._prefilled = join_prefixes(
            [
                engine.read_prefix(self._base, adapter, np.asarray(prefix, np.int32)[None])
                for adapter, prefix in members
            ]
        )

    def __call__(
        self,
        rows: Sequence[Sequence[int]],
        *,
        batch_rows: int,
        members: Sequence[int] | None = None,
        seed: int = 0,
        first_index: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[int]]:
        """New tokens of each row, EOS left out, in the order given. Without EOS there are
        `max_new_tokens` of them.

        Args:
          rows: token ids, at least one per row.
          batch_rows: rows decoded at once, shared out evenly among the members.
          members: of each row, its member's number; all are the first's by default.
          seed: of sampling. Each row has a stream of its own, so that its text doesn't depend on
            what it is batched with.
          first_index: number of the first row, where these are a part of a longer list: a row's
            stream depends on the seed and on its number.
          progress: told how many rows are done.
        """
        done: list[list[int]] = [[] for _ in rows]

        def keys(numbers: np.ndarray) -> Key[Array, "group row"]:
            return _row_keys(seed, first_index + numbers)

        for service in self._services(rows, batch_rows, members, keys):
            for i, tokens in service.run():
                done[i] = _until(tokens, self._sampling.eos)
                if progress:
                    progress(1)
        return done

    def warm(self, rows: Sequence[Sequence[int]], *, batch_rows: int) -> None:
        """Compiles what a call with these rows, or with as many of their lengths, needs.

        A server does so before its first request. Arguments are those of the call.
        """
        for service in self._services(rows, batch_rows, None, lambda of: _row_keys(0, of)):
            service.warm()

    def _services(
        self,
        rows: Sequence[Sequence[int]],
        batch_rows: int,
        members: Sequence[int] | None,
        keys: Callable[[np.ndarray], Key[Array, "group row"]],
    ) -> Iterator[Service]:
        """One for each class of lengths, the longest rows first."""
        rows = [[*self._in_row, *row] for row in rows]
        members = [0] * len(rows) if members is None else members
        waiting = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        while waiting:
            longest = len(rows[waiting[0]])
            now = [i for i in waiting if len(rows[i]) * _RATIO > longest]
            waiting = waiting[len(now) :]
            queues = [[i for i in now if members[i] == g] for g in range(self._groups)]
            places = min(max(1, batch_rows // self._groups), max(map(len, queues)))
            yield Service(self, rows, queues, places, keys)

    def stream(self, row: Sequence[int], *, seed: int = 0, index: int = 0) -> Iterator[int]:
        """New tokens of one row, EOS left out, each as soon as it is chosen.

        Args:
          row: token ids, at least one.
          seed: of sampling.
          index: number of the row; as number `index` of a list it gets the same tokens.
        """
        places = self.begin(self.read([row]), _row_keys(seed, np.asarray([[index]])))
        told = 0
        while told < self._sampling.max_new_tokens:
            count, made = jax.device_get((places.count, places.made))
            for token in made[0, 0, told : count[0, 0]].tolist():
                if token == self._sampling.eos:
                    return
                yield token
            told = int(count[0, 0])
            places = self.advance(places, 1, steps=1)

    def read(self, rows: Sequence[Sequence[int]]) -> Read:
        """Reads rows of the only member."""
        return self.read_padded(*pad_rows([[*self._in_row, *row] for row in rows]))

    def read_padded(self, tokens: np.ndarray, valid: np.ndarray) -> Read:
        """Reads right-padded rows: `[row, slot]` of the only member, or `[group, row, slot]`."""
        shape = (self._groups, -1, tokens.shape[-1])
        tokens, valid = tokens.reshape(shape), valid.reshape(shape)
        return engine.read_rows(self._base, self._adapter, self._prefilled, tokens, valid)

    def begin(self, read: Read, keys: Key[Array, "group row"]) -> Places:
        """Places for just these rows."""
        return begin(self._sampling, self._prefilled, read, keys)

    def advance(self, places: Places, ended: int, *, steps: int | None = None) -> Places:
        """Chooses tokens until so many places have ended, or in so many steps; takes `places`."""
        steps = self._sampling.max_new_tokens if steps is None else steps
        return engine.advance(
            self._sampling, self._base, self._adapter, places, self._known, ended, steps
        )

    def ended(self, places: Places) -> Bool[Array, "group row"]:
        """Which places have nothing more to choose."""
        return places.ended(self._sampling)

    def no_rows(self, read: Read, rows: int, slots: int) -> Places:
        """Free places, `rows` for each member, for rows of up to `slots` tokens."""
        return no_rows(self._sampling, self._prefilled, read, rows, slots)

    def admit(self, places: Places, read: Read, where: np.ndarray, keys: Array) -> Places:
        """Gives places to rows; takes `places`."""
        return admit(self._sampling, places, read, where, keys)


def _is_unrolled(base: nnx.State) -> bool:
    """Whether a block for every layer decodes faster: on one CPU, and on one GPU with room for it.

    A loop over stacked blocks copies each layer's weights, and there the whole cache, per token.
    """
    device = only_device(base)
    if device is None or device.platform not in ("cpu", "gpu"):
        return False
    memory = device.memory_stats() if device.platform == "gpu" else None
    if memory is None:
        return True
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(base))
    return needed < (memory["bytes_limit"] - memory["bytes_in_use"]) / 2


def _until(tokens: Int[np.ndarray, " new"], eos: int) -> list[int]:
    ends = np.flatnonzero(tokens == eos)
    return tokens[: ends[0] if len(ends) else len(tokens)].tolist()


def _row_keys(seed: int, numbers: Int[np.ndarray, "group row"]) -> Key[Array, "group row"]:
    return _drawn(jax.random.key(seed), numbers.astype(np.uint32))


@jax.jit
def _drawn(key: Key[Array, ""], numbers: UInt32[Array, "group row"]) -> Key[Array, "group row"]:
    return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (None, 0))(key, numbers)
