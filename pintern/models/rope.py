"""Rotary positions (RoPE, 2104.09864) and the ways in which families stretch them."""

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How the angles are stretched over a longer context.

    Attributes:
      kind: `linear` divides every frequency by `factor`. `dynamic` raises the base as the context
        outgrows `original_positions`. `llama3` divides the low frequencies only. `yarn`
        (2309.00071) does so by a ramp over the dimensions, and lengthens queries and keys.
      factor: how many times the original context.
      original_positions: the context before stretching, in tokens.
      low_freq_factor: `llama3`: wavelengths above original_positions / this are divided.
      high_freq_factor: `llama3`: wavelengths below original_positions / this stay.
      beta_fast: `yarn`: dimensions that turn more often than this in the original context stay.
      beta_slow: `yarn`: those that turn less often are divided.
      truncate: `yarn`: the ramp begins and ends at whole dimensions.
      length_factor: `yarn`: factor of the rotated queries and keys.
    """

    kind: Literal["linear", "dynamic", "llama3", "yarn"]
    factor: float
    original_positions: int
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    length_factor: float = 1.0


def rotary_angles(
    positions: Int[Array, "*batch"],
    rotary_dim: int,
    theta: float,
    scaling: RopeScaling | None = None,
    context: int = 0,
) -> tuple[Float[Array, "*batch half"], Float[Array, "*batch half"]]:
    """Cosine and sine of the angles, one per pair of dimensions.

    Args:
      positions: of the tokens.
      rotary_dim: dimensions of a head that are rotated; an odd one is rounded up.
      theta: base of the angles.
      scaling: stretches them.
      context: the model's, in tokens, on which `dynamic` depends. It is one number and not the
        length of each row, because a shared prefix is read before its rows are known.
    """
    frequencies = _frequencies(rotary_dim, theta, scaling, context)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if scaling is None or scaling.length_factor == 1.0:
        return cos, sin
    return cos * scaling.length_factor, sin * scaling.length_factor


def apply_rotary(
    x: Float[Array, "*batch heads dim"],
    cos: Float[Array, "*batch half"],
    sin: Float[Array, "*batch half"],
) -> Float[Array, "*batch heads dim"]:
    """Rotates the first half of each head against its second half (Hugging Face's layout).

    Where there are fewer angles than half the dimensions, the dimensions behind them stay.
    """
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos[..., None, :].astype(x.dtype), sin[..., None, :].astype(x.dtype)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def _frequencies(
    dim: int, theta: float, scaling: RopeScaling | None, context: int
) -> Float[Array, " half"]:
    """Radians per token, from fast to slow."""
    if scaling is not None and scaling.kind == "dynamic":
        stretch = max(context, scaling.original_positions) / scaling.original_positions
        theta *= (scaling.factor * stretch - (scaling.factor - 1)) ** (dim / (dim - 2))
    frequencies = theta ** (-jnp.arange(0, dim, 2, dtype=jnp.float32) / dim)
    if scaling is None or scaling.kind == "dynamic":
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    kept = _kept(frequencies, dim, theta, scaling)
    return kept * frequencies + (1 - kept) * frequencies / scaling.factor


def _kept(
    frequencies: Float[Array, " half"], dim: int, theta: float, scaling: RopeScaling
) -> Float[Array, " half"]:
    """How much of each frequency stays undivided: 1 where it is fast, 0 where it is slow."""
    if scaling.kind == "llama3":
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        turns = scaling.original_positions * frequencies / (2 * math.pi)
        return jnp.clip((turns - low) / (high - low), 0, 1)

    def pair(turns: float) -> float:
        """The pair of dimensions that turns so often in the original context."""
        ratio = scaling.original_positions / (turns * 2 * math.pi)
        return dim * math.log(ratio) / (2 * math.log(theta))

    start, end = pair(scaling.beta_fast), pair(scaling.beta_slow)
    if scaling.truncate:
        start, end = math.floor(start), math.ceil(end)
    start, end = max(start, 0), min(end, dim - 1)
    # A ramp of no width would divide by zero.
    end = end + 0.001 if start == end else end
    return 1 - jnp.clip((jnp.arange(frequencies.shape[0]) - start) / (end - start), 0, 1)


def yarn_length_factor(factor: float, mscale: float = 0.0, mscale_all_dim: float = 0.0) -> float:
    """YaRN's factor of rotated queries and keys where config.json doesn't state it."""

    def grown(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if mscale and mscale_all_dim:
        return grown(mscale) / grown(mscale_all_dim)
    return grown(1.0)
