"""An adapter directory becomes an adapter: LoRA, soft prompt, or both as an export's siblings."""

from __future__ import annotations

from pathlib import Path

from pintern.adapters.adapter import Adapter
from pintern.errors import UserError
from pintern.interop.files import CONFIG, read_adapter_config
from pintern.interop.manifest import check_base, read_manifest
from pintern.interop.peft_lora import read_lora
from pintern.interop.peft_soft_prompt import read_soft_prompt
from pintern.models.load import Checkpoint

_READERS = {"LORA": read_lora, "PROMPT_TUNING": read_soft_prompt}


def read_adapter(directory: str | Path, checkpoint: Checkpoint) -> Adapter:
    """Reads what PEFT or `pintern.export` wrote, for a base.

    An export tells its base by fingerprint and is refused on any other. A directory of PEFT's own
    tells none, and is taken where every name and shape fits.

    Args:
      directory: PEFT LoRA or PROMPT_TUNING directory, or an export that holds both as siblings (a
        merged model beside a soft prompt counts as the soft prompt alone: the model is the base).
      checkpoint: the base that the adapter is to sit on.

    Raises:
      UserError: names what is malformed, unsupported or of another base.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    folders = {} if manifest is None else dict(manifest.parts)
    # A merged model is a base; beside a soft prompt it is the one that was trained with.
    folders.pop("model", None)
    if not folders or set(folders.values()) == {"."}:
        return _read_part(directory, checkpoint)
    parts = [_read_part(directory / folder, checkpoint) for folder in folders.values()]
    whole = Adapter({})
    for part in parts:
        if part.lora:
            whole = whole.replace(lora=part.lora, scale=part.scale, dropout=part.dropout)
        if part.soft_prompt is not None:
            whole = whole.replace(soft_prompt=part.soft_prompt)
    return whole


def _read_part(directory: Path, checkpoint: Checkpoint) -> Adapter:
    config = read_adapter_config(directory)
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in _READERS:
        raise UserError(
            f"{directory / CONFIG}: peft_type is {kind!r}, which can't be read.",
            f"Expected {' or '.join(_READERS)}.",
        )
    manifest = read_manifest(directory)
    if manifest is not None:
        check_base(manifest, checkpoint, directory)
    return _READERS[kind](directory, config, checkpoint)
