"""What a family file declares: how config.json maps to a decoder, and where each weight lies."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from pintern.models.config import DecoderConfig


@dataclasses.dataclass(frozen=True)
class Weight:
    """Where one of our tensors lies in a Hugging Face checkpoint.

    Attributes:
      name: tensor name; `{layer}` stands for the layer's number where ours is stacked, and
        `{expert}` for the expert's.
      transpose: theirs is `(out, in)` where ours is `(in, out)`.
    """

    name: str
    transpose: bool = False


@dataclasses.dataclass(frozen=True)
class Family:
    """One model family.

    Attributes:
      name: `model_type` of config.json.
      to_config: maps config.json to our config.
      weights: our parameter path to its place, for a given config.
      checked: options that change the arithmetic, with the values that this decoder computes.
      known: further options that are read, or that change nothing at inference.
      ignored_tensors: endings of tensors that carry no weight (buffers of older files).
      prefix: module prefix that hub files of this family may lack.
      head: the output matrix, which files of tied models may store a second time.
    """

    name: str
    to_config: Callable[[Mapping[str, Any]], DecoderConfig]
    weights: Callable[[DecoderConfig], dict[str, Weight]]
    checked: Mapping[str, tuple[Any, ...]]
    known: frozenset[str]
    ignored_tensors: tuple[str, ...] = ()
    prefix: str = ""
    head: str = "lm_head.weight"


def norm(ours: str, theirs: str) -> dict[str, Weight]:
    """Table entries of a LayerNorm."""
    return {f"{ours}.scale": Weight(f"{theirs}.weight"), f"{ours}.bias": Weight(f"{theirs}.bias")}


def linear(ours: str, theirs: str, *, bias: bool = True) -> dict[str, Weight]:
    """Table entries of a linear map that is stored `(out, in)`."""
    table = {f"{ours}.kernel": Weight(f"{theirs}.weight", transpose=True)}
    if bias:
        table[f"{ours}.bias"] = Weight(f"{theirs}.bias")
    return table
