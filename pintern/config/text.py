"""A config as text, and how two of them differ."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ml_collections import ConfigDict

from pintern.config.checks import validate
from pintern.config.fields import default_config


def to_json(config: ConfigDict) -> str:
    """The config as it is written to a run's `config.json`."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> ConfigDict:
    """Reads back what `to_json` wrote; a field that wasn't there yet has its default."""
    config = ConfigDict(_over(default_config().to_dict(), json.loads(text)))
    return validate(config, recorded=True)


def _over(defaults: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    merged = defaults | {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    for name, value in given.items():
        if isinstance(value, dict) and isinstance(defaults.get(name), dict):
            merged[name] = _over(defaults[name], value)
    return merged


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """Fields that differ, as `train.steps: 400 → 800`."""
    a, b = _flat(old.to_dict()), _flat(new.to_dict())
    return [f"{k}: {a.get(k)!r} → {b.get(k)!r}" for k in sorted({*a, *b}) if a.get(k) != b.get(k)]


def _flat(tree: dict[str, Any], path: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{path}{name}."))
        else:
            flat[path + name] = list(value) if isinstance(value, tuple) else value
    return flat


def fingerprint(config: ConfigDict) -> str:
    """Twelve hex digits that change when any field does."""
    return hashlib.sha256(to_json(config).encode()).hexdigest()[:12]
