"""Reading what others wrote: an adapter's config and tensors, each mistake told by name."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy, in which safetensors returns it)
import numpy as np
from safetensors import SafetensorError, safe_open

from pintern.errors import UserError
from pintern.models.checkpoint_files import read_object

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_READABLE = ("F64", "F32", "F16", "BF16")


def read_adapter_config(directory: Path) -> dict[str, Any]:
    """adapter_config.json of an adapter directory.

    Raises:
      UserError: no such directory, no such file, or not a JSON object.
    """
    if not directory.is_dir():
        raise UserError(
            f"No adapter directory {str(directory)!r}.",
            f"Expected a folder with {CONFIG} and {WEIGHTS}.",
        )
    if not (directory / CONFIG).is_file():
        hint = f"Expected a PEFT directory ({CONFIG}, {WEIGHTS})."
        if (directory / "checkpoints").is_dir():
            hint = (
                f"It is a run's folder: python -m pintern.export --workdir={directory} makes one."
            )
        elif (directory / "config.json").is_file():
            hint = "It holds a whole model, which is a base (config.model.path) and no adapter."
        raise UserError(f"No {CONFIG} in {str(directory)!r}.", hint)
    return read_object(directory / CONFIG)


def read_adapter_tensors(directory: Path) -> dict[str, np.ndarray]:
    """adapter_model.safetensors, every tensor finite and in float32.

    Raises:
      UserError: missing, pickled, truncated, quantised, or with NaN or infinite values.
    """
    path = directory / WEIGHTS
    if not path.is_file():
        if (directory / "adapter_model.bin").is_file():
            raise UserError(
                f"No {WEIGHTS} in {str(directory)!r}, only the pickle file adapter_model.bin.",
                "Pickle is never loaded, because it runs the code that it holds. Load it with PEFT "
                "where you trust it, and save_pretrained(..., safe_serialization=True).",
            )
        raise UserError(f"No {WEIGHTS} in {str(directory)!r}.", "It holds the adapter's weights.")
    tensors = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118  (not a dict, and not iterable)
                kind = file.get_slice(name).get_dtype()
                if kind not in _READABLE:
                    raise UserError(
                        f"Tensor {name} in {path} is stored as {kind}.",
                        f"Adapters are read from {', '.join(_READABLE)}.",
                    )
                tensors[name] = file.get_tensor(name).astype(np.float32)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated, or no safetensors file: {error}.") from error
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise UserError(
                f"Tensor {name} in {path} holds NaN or infinite values.",
                "Its training diverged, or the file is damaged: use an earlier checkpoint.",
            )
    return tensors


def positive_number(config: dict[str, Any], option: str, directory: Path, *kinds: type) -> Any:
    """An option that must be a positive number of one of the kinds.

    Raises:
      UserError: it is missing or something else.
    """
    value = config.get(option)
    if type(value) not in kinds or not 0 < value < float("inf"):
        what = "positive whole number" if kinds == (int,) else "positive number"
        raise UserError(f"{directory / CONFIG}: {option} is {value!r}; it must be a {what}.")
    return value


def few(names: Collection[str], shown: int = 4) -> str:
    """Some names, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{', '.join(names[:shown])}{more}"
