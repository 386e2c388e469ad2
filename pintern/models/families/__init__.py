"""Model families: one short file each, saying how config.json maps to a `DecoderConfig` and where
each weight lies in the checkpoint. Import `FAMILIES`, `family_of` and `decoder_config` from here;
a family file imports nothing but the config, the table's types, the option readers, and what it
shares with a family of the same layout.
"""

from collections.abc import Mapping
from typing import Any

from pintern.errors import UserError
from pintern.models.families import (
    bloom,
    gemma2,
    gemma3,
    gpt2,
    gpt_neox,
    llama,
    mistral,
    mixtral,
    opt,
    qwen2,
    qwen3,
)
from pintern.models.families.options import decoder_config
from pintern.models.families.table import Family, Weight

__all__ = ["FAMILIES", "Family", "Weight", "decoder_config", "family_of"]

_MODULES = (
    bloom,
    gemma2,
    gemma3,
    gpt2,
    gpt_neox,
    llama,
    mistral,
    mixtral,
    opt,
    qwen2,
    qwen3,
)
FAMILIES: dict[str, Family] = {module.FAMILY.name: module.FAMILY for module in _MODULES}


def family_of(raw_config: Mapping[str, Any]) -> Family:
    """The family that config.json's `model_type` names.

    Raises:
      UserError: no `model_type`, or one that no family file describes.
    """
    name = raw_config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(
            f"config.json: model_type is {name!r}, which is not a family known here.",
            f"Known: {', '.join(sorted(FAMILIES))}.",
        )
    return FAMILIES[name]
