"""pintern.json: what an export is and which base it sits on, so that no other base takes it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from pintern.errors import UserError
from pintern.models.checkpoint_files import read_object
from pintern.models.load import Checkpoint

NAME = "pintern.json"
SCHEMA = 1
KINDS = ("lora", "soft_prompt", "model")


@dataclasses.dataclass(frozen=True)
class Base:
    """The model that an export sits on.

    Attributes:
      name: hub name or path, as a loader takes it.
      family: `model_type` of its config.json.
      fingerprint: sha256 of arithmetic and tensors, see `Checkpoint`.
      revision: of a name on the hub: branch, tag or commit; empty is the newest.
    """

    name: str
    family: str
    fingerprint: str
    revision: str = ""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of pintern.json.

    Attributes:
      base: what the export sits on; of a merged model, what it was merged into.
      parts: kind (`lora`, `soft_prompt`, `model`) to folder below this one; `.` is this one.
      details: run, prompt, tokens and scores, for people and other programs.
    """

    base: Base
    parts: dict[str, str]
    details: dict[str, Any] = dataclasses.field(default_factory=dict)


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Writes pintern.json."""
    content = {"schema": SCHEMA, **dataclasses.asdict(manifest)}
    text = json.dumps(content, indent=2, ensure_ascii=False)
    (directory / NAME).write_text(text + "\n", encoding="utf-8")


def read_manifest(directory: Path) -> Manifest | None:
    """Reads pintern.json; None where there is none, as in a directory that PEFT itself wrote.

    Raises:
      UserError: it is there and malformed.
    """
    path = directory / NAME
    if not path.is_file():
        return None
    content = read_object(path)
    if content.get("schema") != SCHEMA:
        raise UserError(
            f"{path} has schema {content.get('schema')!r}; this version reads {SCHEMA}.",
            "Export again with this version.",
        )
    base, parts = content.get("base"), content.get("parts")
    fields = {"name", "family", "fingerprint"}
    if not isinstance(base, dict) or not fields <= {k for k, v in base.items() if type(v) is str}:
        raise UserError(
            f"{path} doesn't say which base the export sits on.",
            f"Expected base: {{{', '.join(sorted(fields))}}}. Export again, or remove the file to "
            "have shapes checked alone.",
        )
    if not isinstance(parts, dict) or not parts or not set(parts) <= set(KINDS):
        raise UserError(
            f"{path} has parts {parts!r}; expected a folder for some of {', '.join(KINDS)}."
        )
    for folder in parts.values():
        # A part lies in the export: a path could lead anywhere.
        if not isinstance(folder, str) or folder == ".." or Path(folder).name != folder.strip("."):
            raise UserError(
                f"{path} names the part {folder!r}.", "Expected '.' or the name of a folder."
            )
    revision = str(base.get("revision", ""))  # older exports don't tell
    whole = Base(**{name: base[name] for name in fields}, revision=revision)
    return Manifest(whole, parts, content.get("details", {}))


def check_base(manifest: Manifest, checkpoint: Checkpoint, directory: Path) -> None:
    """Refuses an adapter on a base that it wasn't trained on.

    Raises:
      UserError: the fingerprints differ.
    """
    base = manifest.base
    if base.fingerprint != checkpoint.fingerprint:
        given = checkpoint.directory or "random weights"
        raise UserError(
            f"{directory} is an adapter of another base: {base.name} ({base.family}, fingerprint "
            f"{base.fingerprint[:12]}), not {given} ({checkpoint.family.name}, "
            f"{checkpoint.fingerprint[:12]}).",
            "Give the base that it was trained on, in the dtype in which that was stored.",
        )
