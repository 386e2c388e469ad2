"""Reading how config.json stretches rotary positions, in its older and its newer spelling."""

from collections.abc import Mapping
from typing import Any

from pintern.errors import UserError
from pintern.models.families.options import read_flag, read_number, read_size
from pintern.models.rope import RopeScaling, yarn_length_factor

# Every way that is computed, with the options that belong to it.
_KINDS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    ),
}
_COMMON = ("rope_type", "type", "rope_theta", "partial_rotary_factor")


def read_rope(
    raw: Mapping[str, Any],
    *,
    head_dim: int,
    max_positions: int,
    theta: float = 10000.0,
    rotary_share: float | None = None,
) -> dict[str, Any]:
    """The rotary fields of a `DecoderConfig`.

    Args:
      raw: config.json; its `rope_parameters` (transformers 5) or `rope_scaling` and `rope_theta`.
      head_dim: width of one head.
      max_positions: the model's context, in tokens.
      theta: base of the angles where none is stated.
      rotary_share: share of each head that is rotated where none is stated; None where the family
        rotates all of it.

    Raises:
      UserError: a kind of scaling that isn't computed, or an option that doesn't belong to it.
    """
    where = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
    rope = raw.get(where) or {}
    if not isinstance(rope, Mapping):
        raise UserError(f"config.json: {where} is {rope!r}; it must be a table of options.")
    share = rope.get("partial_rotary_factor", raw.get("partial_rotary_factor"))
    if rotary_share is None and share not in (None, 1, 1.0):
        raise UserError(
            f"config.json: {where}.partial_rotary_factor is {share!r}, which this family does not "
            "compute.",
            "It rotates whole heads (1.0).",
        )
    dim = head_dim
    if rotary_share is not None:
        share = read_number(raw, "rotary_pct", rotary_share) if share is None else share
        dim = int(head_dim * share)
    if dim == head_dim and dim % 2:
        raise UserError(
            f"config.json: head_dim is {dim}.", "Rotary positions turn pairs: it must be even."
        )
    if not 1 <= dim <= head_dim:
        raise UserError(
            f"config.json: {where}.partial_rotary_factor is {share!r}, which rotates {dim} of "
            f"{head_dim} dimensions.",
            "Expected a share between 0 and 1 of at least one dimension.",
        )
    own_theta = read_number(raw, "rotary_emb_base", read_number(raw, "rope_theta", theta))
    return {
        "rope_theta": read_number(rope, "rope_theta", own_theta),
        "rope_scaling": read_scaling(rope, where, max_positions),
        "rotary_dim": None if dim == head_dim else dim,
    }


def read_scaling(rope: Mapping[str, Any], where: str, max_positions: int) -> RopeScaling | None:
    """The scaling that a table of rope options asks for; None for none.

    Args:
      rope: the table.
      where: its name in config.json, for messages.
      max_positions: the model's context, in tokens.

    Raises:
      UserError: a kind, option or value that the decoder doesn't compute.
    """
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in _KINDS:
        raise UserError(
            f"config.json: {where}.rope_type is {kind!r}, which this decoder does not compute.",
            f"It computes {', '.join(_KINDS)}.",
        )
    for option, value in rope.items():
        if option not in _COMMON + _KINDS[kind]:
            raise UserError(
                f"config.json: unknown option {where}.{option} (value {value!r}) for {kind} "
                "rotary positions.",
                f"These read: {', '.join(_COMMON + _KINDS[kind])}.",
            )
    if kind == "default":
        return None
    original = read_size(rope, "original_max_position_embeddings", max_positions)
    if kind == "yarn" and rope.get("factor", 0) is None:
        rope = {**rope, "factor": max_positions / original}
    if rope.get("factor") is None:
        raise UserError(
            f"config.json: {where}.factor is missing.", f"{kind} scaling cannot do without it."
        )
    factor = read_number(rope, "factor", 1.0)
    if kind in ("linear", "dynamic"):
        return RopeScaling(kind, factor, original)
    if kind == "llama3":
        low = read_number(rope, "low_freq_factor", 1.0)
        high = read_number(rope, "high_freq_factor", 4.0)
        if high <= low:
            raise UserError(
                f"config.json: {where}.high_freq_factor is {high}, low_freq_factor {low}.",
                "The first must be the larger.",
            )
        return RopeScaling(kind, factor, original, low_freq_factor=low, high_freq_factor=high)
    length = yarn_length_factor(factor, rope.get("mscale") or 0, rope.get("mscale_all_dim") or 0)
    return RopeScaling(
        kind,
        factor,
        original,
        beta_fast=read_number(rope, "beta_fast", 32.0),
        beta_slow=read_number(rope, "beta_slow", 1.0),
        truncate=read_flag(rope, "truncate", True),
        length_factor=read_number(rope, "attention_factor", length),
    )
