"""A decoder as a compiled program takes it, at a cost that doesn't grow with its layers.

A program's call hashes what is static and takes all else apart. Of a module's graph and state that
is Python's work, parameter by parameter, and with many layers as long as choosing a token.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Num

from pintern.models.decoder import Decoder


class Structure:
    """What a decoder is beside its arrays; hashed once.

    Args:
      graph: static part of the decoder, as `nnx.split` gives it.
      tree: of its state.
    """

    def __init__(self, graph: nnx.GraphDef, tree: jax.tree_util.PyTreeDef):
        self._parts = graph, tree
        self._hash = hash(self._parts)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Structure) and self._parts == other._parts

    def merge(self, arrays: tuple[Array, ...]) -> Decoder:
        """The decoder of these arrays."""
        graph, tree = self._parts
        return nnx.merge(graph, tree.unflatten(arrays))


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["arrays"], meta_fields=["structure"]
)
@dataclasses.dataclass(frozen=True)
class SplitDecoder:
    """A decoder's arrays, and what it is beside them.

    Attributes:
      arrays: its parameters, or their shapes.
      structure: the rest.
    """

    arrays: tuple[Num[Array, ...], ...]
    structure: Structure

    @classmethod
    def of(cls, graph: nnx.GraphDef, state: Any) -> SplitDecoder:
        """Of what `nnx.split` gives."""
        arrays, tree = jax.tree.flatten(state)
        return cls(tuple(arrays), Structure(graph, tree))

    def merge(self) -> Decoder:
        """The decoder itself."""
        return self.structure.merge(self.arrays)
