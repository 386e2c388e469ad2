"""How each layer looks at its tokens: by which rotary angles, and which slots it sees."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pintern.models.attention import Masks, distances, visible
from pintern.models.config import DecoderConfig
from pintern.models.rope import rotary_angles


class View(NamedTuple):
    """How a layer looks at its tokens.

    Attributes:
      rotary: cosine and sine of the queries' angles, or None.
      masks: see `Masks`.
    """

    rotary: tuple[Float[Array, "group row query half"], ...] | None
    masks: Masks


def views_of(
    config: DecoderConfig,
    positions: Int[Array, "group row query"],
    row_positions: Int[Array, "group row slot"],
    prefix_positions: Int[Array, "group prefix_slot"] | None,
    texts: Int[Array, "group row query"] | None = None,
) -> tuple[View, View | None]:
    """What the layers see and by which angles; then the same for windowed layers.

    The second is None where all layers are alike. Windows go by position and not by slot, so
    that padding takes no room in them. Of several texts in a row each sees the prefix and itself.
    """
    own, prefix = visible(positions, row_positions), None
    if texts is not None:
        own &= texts[..., None] == texts[:, :, None]
    own_distance = prefix_distance = None
    far = config.window is not None or config.positions == "alibi"
    if far:
        own_distance = distances(positions, row_positions)
    if prefix_positions is not None:
        prefix_positions = prefix_positions[:, None]
        prefix = jnp.broadcast_to(
            (prefix_positions >= 0)[:, :, None], (*positions.shape, prefix_positions.shape[-1])
        )
        if far:
            prefix_distance = distances(positions, prefix_positions)

    rotary = local_rotary = None
    if config.positions == "rope":
        dim, safe = config.rotary_dim or config.head_dim, jnp.maximum(positions, 0)
        rotary = rotary_angles(
            safe, dim, config.rope_theta, config.rope_scaling, config.max_positions
        )
        local_rotary = rotary
        if config.local_rope_theta is not None:
            local_rotary = rotary_angles(safe, dim, config.local_rope_theta)

    bent = (prefix_distance, own_distance) if config.positions == "alibi" else (None, None)
    full = View(rotary, Masks(prefix, own, *bent))
    if config.window is None:
        return full, None
    if prefix is not None:
        prefix = prefix & (prefix_distance < config.window)
    own = own & (own_distance < config.window)
    local = View(local_rotary, Masks(prefix, own, *bent))
    return (full, local) if config.windowed else (local, None)
