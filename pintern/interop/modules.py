"""Where a LoRA pair of ours belongs in a Hugging Face model: read off the family's weight table.

A family that can be loaded can so be exported and imported; it needs no table of adapter names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np

from pintern.models.layout import Place, places_of, stored_tensor
from pintern.models.load import Checkpoint


@dataclasses.dataclass(frozen=True)
class HubModule:
    """One linear module of every layer, under the name that Hugging Face gives it.

    Attributes:
      name: ours, `attention.query`.
      paths: theirs in each layer, `model.layers.0.self_attn.q_proj`.
      places: of the module's weight in each layer.
      width_in: width of what it reads.
      width_out: width of what it gives.
    """

    name: str
    paths: tuple[str, ...]
    places: tuple[Place, ...]
    width_in: int
    width_out: int

    @property
    def conv1d(self) -> bool:
        """Its weight is stored `(in, out)`, as GPT-2 does; PEFT calls that fan_in_fan_out."""
        return not self.places[0].transpose

    def stored_b(self, b: np.ndarray, layer: int) -> np.ndarray:
        """B as PEFT holds it: `(out, rank)`, with the outputs in the order of the stored weight.

        Args:
          b: `[layer, rank, out]`, ours.
          layer: which one.
        """
        place = self.places[layer]
        stored = stored_tensor({place.path: b}, place, b.dtype)
        return stored if place.transpose else np.ascontiguousarray(stored.T)

    def own_b(self, stored: np.ndarray) -> np.ndarray:
        """`[rank, out]` of ours from PEFT's `(out, rank)`."""
        return np.ascontiguousarray(stored.T)


def hub_modules(checkpoint: Checkpoint) -> dict[str, HubModule]:
    """Every linear module that LoRA can target, by our name."""
    by_path: dict[str, list[Place]] = {}
    for place in places_of(checkpoint.family, checkpoint.config):
        by_path.setdefault(place.path, []).append(place)
    found = {}
    for name, (width_in, width_out) in checkpoint.decoder.linear_modules().items():
        places = tuple(by_path[f"blocks.{name}.kernel"])
        paths = tuple(place.name.removesuffix(".weight") for place in places)
        found[name] = HubModule(name, paths, places, width_in, width_out)
    return found


def target_suffixes(chosen: Collection[str], modules: Mapping[str, HubModule]) -> list[str]:
    """The shortest endings of module paths that name the chosen modules and no other.

    GPT-2 has a `c_proj` in attention and in the MLP: where one of them is chosen, it is named
    `attn.c_proj`, for PEFT adapts whatever ends so.
    """
    others = [path for name, m in modules.items() if name not in chosen for path in m.paths]
    suffixes = set()
    for name in chosen:
        parts = modules[name].paths[0].split(".")
        for count in range(1, len(parts)):
            suffix = ".".join(parts[-count:])
            if not any(path.endswith(f".{suffix}") for path in others):
                break
        suffixes.add(suffix)
    return sorted(suffixes)
