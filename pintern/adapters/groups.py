"""Several adapters side by side, each for a group of rows of its own."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from pintern.adapters.adapter import Adapter, LoraPair


def by_group(adapters: Sequence[Adapter | None]) -> Adapter | None:
    """One adapter whose pairs have a group axis behind the layers': `A [layer, group, in, rank]`.

    Smaller ranks are filled up with zeros, which add nothing, and so are modules that an adapter
    doesn't train; each one's scale is in its B. Soft prompts are left out: they are read with the
    prefix (`decode.Generator`). None where no adapter holds LoRA.
    """
    modules = sorted({name for adapter in adapters if adapter for name in adapter.lora})
    return Adapter({name: _pair(name, adapters) for name in modules}) if modules else None


def _pair(name: str, adapters: Sequence[Adapter | None]) -> LoraPair:
    pairs = [adapter.lora.get(name) if adapter else None for adapter in adapters]
    there = next(pair for pair in pairs if pair is not None)
    rank = max(pair.a.shape[-1] for pair in pairs if pair is not None)

    def a_of(pair: LoraPair | None) -> Float[Array, "layer in rank"]:
        if pair is None:
            return jnp.zeros((*there.a.shape[:-1], rank), there.a.dtype)
        return jnp.pad(pair.a, [(0, 0), (0, 0), (0, rank - pair.a.shape[-1])])

    def b_of(pair: LoraPair | None, adapter: Adapter | None) -> Float[Array, "layer rank out"]:
        if pair is None:
            return jnp.zeros((there.b.shape[0], rank, there.b.shape[-1]), there.b.dtype)
        return adapter.scale * jnp.pad(pair.b, [(0, 0), (0, rank - pair.b.shape[1]), (0, 0)])

    return LoraPair(
        jnp.stack([a_of(pair) for pair in pairs], 1),
        jnp.stack([b_of(*each) for each in zip(pairs, adapters, strict=True)], 1),
    )
