"""An adapter goes out: as PEFT's directories, as merged weights, or as both parts of a hybrid."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from pintern.adapters.adapter import Adapter
from pintern.errors import UserError
from pintern.interop.manifest import Base, Manifest, write_manifest
from pintern.interop.merged import write_merged
from pintern.interop.peft_lora import write_lora
from pintern.interop.peft_soft_prompt import write_soft_prompt
from pintern.models.checkpoint_files import SHARD_BYTES
from pintern.models.load import Checkpoint


@dataclasses.dataclass(frozen=True)
class Export:
    """What goes out.

    Attributes:
      adapter: the trained one.
      checkpoint: its base.
      base_name: hub name or path under which loaders find the base.
      alpha: α of LoRA's scale.
      rank_stabilised: α/√r in place of α/r.
      revision: of a hub name; empty is the newest.
      dtype: of storage.
      max_shard_bytes: of merged weights.
      details: told in pintern.json.
    """

    adapter: Adapter
    checkpoint: Checkpoint
    base_name: str
    alpha: float
    rank_stabilised: bool
    revision: str = ""
    dtype: DTypeLike = jnp.float32
    max_shard_bytes: int = SHARD_BYTES
    details: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def base(self) -> Base:
        """As pintern.json tells it."""
        checkpoint = self.checkpoint
        return Base(self.base_name, checkpoint.family.name, checkpoint.fingerprint, self.revision)


def parts_of(form: str, adapter: Adapter) -> dict[str, str]:
    """What a format writes of an adapter: kind to folder; one part alone is the export itself.

    Raises:
      UserError: the format would leave the adapter's essence out.
    """
    soft = adapter.soft_prompt is not None
    if form == "soft_prompt":
        if not soft:
            raise UserError(
                "--format=soft_prompt, but this adapter has none.", "Use --format=peft or merged."
            )
        if adapter.lora:
            raise UserError(
                "--format=soft_prompt would leave out the LoRA that the prompt was trained with.",
                "Use --format=peft or merged: they write the soft prompt beside it.",
            )
        return {"soft_prompt": "."}
    if not adapter.lora:
        raise UserError(
            f"--format={form} writes LoRA, and this adapter is a soft prompt alone.",
            "Use --format=soft_prompt.",
        )
    main = "lora" if form == "peft" else "model"
    return {main: main, "soft_prompt": "soft_prompt"} if soft else {main: "."}


def write_export(out: Path, form: str, export: Export, card: str) -> Path:
    """Writes the whole export, or nothing.

    Args:
      out: its folder; absent or empty.
      form: `peft`, `merged` or `soft_prompt`.
      export: what goes out.
      card: README.md of the export.

    Raises:
      UserError: see `parts_of`; also a folder that holds something, or can't be written.
    """
    parts = parts_of(form, export.adapter)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"--out={out} is there already.", "Name another folder; nothing in it was touched."
        )
    unfinished = out.with_name(out.name + ".partial")
    try:
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir(parents=True)
        _write_parts(unfinished, parts, export)
        (unfinished / "README.md").write_text(card, encoding="utf-8")
        if out.exists():
            out.rmdir()
        os.replace(unfinished, out)
    except OSError as error:
        raise UserError(f"--out={out} can't be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return out


def _write_parts(out: Path, parts: dict[str, str], export: Export) -> None:
    base = export.base
    for kind, folder in parts.items():
        directory = out / folder
        common = (directory, export.adapter, export.checkpoint)
        if kind == "lora":
            write_lora(
                *common,
                base_name=base.name,
                revision=base.revision,
                alpha=export.alpha,
                rank_stabilised=export.rank_stabilised,
                dtype=export.dtype,
            )
        elif kind == "soft_prompt":
            write_soft_prompt(
                *common, base_name=base.name, revision=base.revision, dtype=export.dtype
            )
        else:
            fingerprint = write_merged(
                *common, dtype=export.dtype, max_shard_bytes=export.max_shard_bytes
            )
        if folder != ".":
            write_manifest(directory, Manifest(base, {kind: "."}, export.details))
        if kind == "model":
            # The soft prompt beside merged weights stands in front of those.
            base = Base(f"../{folder}", base.family, fingerprint)
    write_manifest(out, Manifest(export.base, parts, export.details))
