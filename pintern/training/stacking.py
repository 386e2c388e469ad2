"""N members as one: trees with a leading member axis, and the step that is mapped over it.

The base is not mapped. Its maps then meet the tokens of all members in one product, and it stands
in memory once; adapters, optimizer states and activations are there for each member.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray
from ml_collections import ConfigDict

from pintern.curriculum import Level
from pintern.training.data import TrainingData
from pintern.training.members import RATES
from pintern.training.step import (
    Teacher,
    TrainBatch,
    TrainState,
    loss_options,
    make_optimizer,
    make_step,
)


def stack(trees: Sequence[Any]) -> Any:
    """One tree with a leading member axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@functools.partial(jax.jit, static_argnums=1)
def unstack(tree: Any, count: int) -> list[Any]:
    """The members' trees, by one program."""
    return [jax.tree.map(operator.itemgetter(i), tree) for i in range(count)]


def rates_of(configs: Sequence[ConfigDict]) -> dict[str, Float[Array, " member"]]:
    """What the optimizer is told of each member."""
    return {name: jnp.array([c.train[name] for c in configs], jnp.float32) for name in RATES}


def make_population_step(
    graph: nnx.GraphDef, config: ConfigDict, *, own_teachers: bool
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """Builds `(state, base, batches, teacher, keys, rates) -> state, metrics` of all members.

    Every argument but the base has a leading member axis; so has the teacher where each member has
    one of its own.

    Args:
      graph: of the base.
      config: of any member; `rates` overrides what members may differ in.
      own_teachers: whether the teacher has a member axis.
    """

    def step(
        state: TrainState,
        base: nnx.State,
        batches: TrainBatch,
        teacher: Teacher | None,
        key: PRNGKeyArray,
        rates: dict[str, Float[Array, ""]],
    ) -> tuple[TrainState, dict[str, Array]]:
        optimizer = make_optimizer(ConfigDict({**config.train.to_dict(), **rates}))
        apply = make_step(graph, optimizer, **loss_options(config))
        return apply(state, base, batches, teacher, key)

    return jax.vmap(step, in_axes=(0, None, 0, 0 if own_teachers else None, 0, 0))


class PopulationData:
    """The members' batches, each in its own order, padded to one shape a level.

    Padding is zeros on the right: invalid tokens, and targets of weight 0.

    Args:
      members: the data of each.
    """

    def __init__(self, members: Sequence[TrainingData]):
        self.members = list(members)
        self._shapes: dict[Level, Any] = {}
        for level in self.members[0].levels:
            packed = math.gcd(*(data.packed(level) for data in self.members))
            for data in self.members:
                data.pack_at_most(level, packed)

    def abstract(self, level: Level) -> TrainBatch:
        """Shapes of a level's batches, with the member axis."""
        if level not in self._shapes:
            # All members' largest: with several of them a step hardly ever does with less.
            every = [batch for data in self.members for _, batch in data.programs(level)]
            self._shapes[level] = jax.tree.map(
                lambda *leaves: jax.ShapeDtypeStruct(
                    (len(self.members), *np.max([np.shape(leaf) for leaf in leaves], axis=0)),
                    leaves[0].dtype,
                ),
                *every,
            )
        return self._shapes[level]

    def batch(self, step: int, level: Level) -> tuple[TrainBatch, list[TrainBatch]]:
        """The batch of a step with its member axis, and a view of each member's part."""
        batches = [data.batch(step, level)[1] for data in self.members]
        joined = jax.tree.map(_join, self.abstract(level), *batches)
        count = len(self.members)
        parts = [jax.tree.map(operator.itemgetter(i), joined) for i in range(count)]
        return joined, parts


def _join(wanted: jax.ShapeDtypeStruct, *leaves: np.ndarray) -> np.ndarray:
    joined = np.zeros(wanted.shape, wanted.dtype)
    for i, leaf in enumerate(leaves):
        joined[(i, *map(slice, leaf.shape))] = leaf
    return joined
