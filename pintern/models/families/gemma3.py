"""Gemma 3, text: Gemma 2 with normalised heads, five windowed layers to each full one, and a base
of its own for the rotary angles of windowed layers; no caps on the scores.
"""

from collections.abc import Mapping
from typing import Any

from pintern.errors import UserError
from pintern.models.config import DecoderConfig
from pintern.models.families import gemma2, llama_layout
from pintern.models.families.options import (
    read_cap,
    read_number,
    read_size,
    read_window,
    read_windowed,
)
from pintern.models.families.rope_options import read_scaling
from pintern.models.families.table import Family


def _config(raw: Mapping[str, Any]) -> DecoderConfig:
    raw = {**gemma2.DEFAULTS, "max_position_embeddings": 131072, **raw}
    full, local_theta = _rope(raw)
    layers = read_size(raw, "num_hidden_layers")
    pattern = read_size(raw, "sliding_window_pattern", 6)
    return DecoderConfig(
        **gemma2.gemma_fields({**raw, "rope_scaling": None, "rope_parameters": full}),
        **read_windowed(raw, read_window(raw), [(i + 1) % pattern != 0 for i in range(layers)]),
        qk_norm=True,
        local_rope_theta=local_theta,
        logit_cap=read_cap(raw, "final_logit_softcapping"),
    )


def _rope(raw: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
    """Rope options of the full layers, and the base of the windowed ones."""
    by_type = raw.get("rope_parameters") or {}
    if not isinstance(by_type, Mapping):
        raise UserError(f"config.json: rope_parameters is {by_type!r}; it must be a table.")
    unknown = sorted(set(by_type) - {"full_attention", "sliding_attention"})
    if unknown:
        raise UserError(
            f"config.json: unknown option rope_parameters.{unknown[0]} (value "
            f"{by_type[unknown[0]]!r}) for gemma3_text.",
            "Its rope options stand under full_attention and sliding_attention.",
        )
    for name, options in by_type.items():
        if not isinstance(options, Mapping | None):
            raise UserError(
                f"config.json: rope_parameters.{name} is {options!r}; it must be a table."
            )
    full = {**(by_type.get("full_attention") or {}), **(raw.get("rope_scaling") or {})}
    full.setdefault("rope_theta", read_number(raw, "rope_theta", 1e6))
    local = by_type.get("sliding_attention") or {}
    where = "rope_parameters.sliding_attention"
    if read_scaling(local, where, 1) is not None:
        raise UserError(
            f"config.json: {where}.rope_type is {local.get('rope_type')!r}, which this decoder "
            "does not compute.",
            "Angles are stretched in full layers only.",
        )
    own = read_number(raw, "rope_local_base_freq", 1e4)
    return full, read_number(local, "rope_theta", own)


FAMILY = Family(
    name="gemma3_text",
    to_config=_config,
    weights=llama_layout.weights,
    checked={
        "use_bidirectional_attention": (None, False),
        # transformers reads this option and does not apply it.
        "attn_logit_softcapping": (None,),
    },
    known=gemma2.KNOWN
    | {"rope_local_base_freq", "sliding_window_pattern", "_sliding_window_pattern"},
    ignored_tensors=llama_layout.IGNORED,
)
