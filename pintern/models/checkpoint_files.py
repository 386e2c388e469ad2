"""Tensors in safetensors files, one or many shards: read one by one, written shard by shard.

Pickle files are never opened: loading one runs whatever code it holds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy, in which safetensors returns it)
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pintern.errors import UserError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000  # weights beyond this are sharded, unless told otherwise
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# The floating formats of safetensors whose values stand for themselves, without a scale beside.
_READABLE = ("F64", "F32", "F16", "BF16")


class TensorFiles:
    """The tensors of a checkpoint directory, by name. Nothing is read until it is asked for.

    One file is mapped at a time: what was read of a file counts as the process's memory as long as
    the file is. Read in the order of `order`, and each file is mapped once.
    """

    def __init__(self, directory: Path):
        """Reads the headers of `model.safetensors`, or of the shards that the index names.

        Raises:
          UserError: no such directory, no safetensors in it, a missing shard, a broken file.
        """
        if not directory.is_dir():
            raise UserError(
                f"No model directory {str(directory)!r}.",
                "Expected a folder with config.json and model.safetensors.",
            )
        self.directory = directory
        self._headers: dict[str, _Header] = {}
        self._mapped: tuple[Path, Any] | None = None
        for path in _weight_files(directory):
            try:
                handle = self._map(path)
            except (SafetensorError, OSError) as error:
                raise UserError(
                    f"{path} is truncated, or no safetensors file: {error}.",
                    "Download or copy it again.",
                ) from error
            for name in handle.keys():  # noqa: SIM118  (not a dict, and not iterable)
                part = handle.get_slice(name)
                shape = tuple(part.get_shape())
                self._headers[name] = _Header(path, shape, part.get_dtype())

    @property
    def names(self) -> list[str]:
        """Every tensor's name."""
        return list(self._headers)

    def order(self, name: str) -> str:
        """Sorts tensors by the file they lie in."""
        return str(self._headers[name].path)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape as stored, read from the file's header."""
        return self._headers[name].shape

    def read(self, name: str) -> np.ndarray:
        """One tensor, in the dtype that it is stored in.

        Raises:
          UserError: it is of a quantised or integer format.
        """
        header = self._headers[name]
        if header.kind not in _READABLE:
            raise UserError(
                f"Tensor {name} in {self.directory} is stored as {header.kind}.",
                f"Weights are read from {', '.join(_READABLE)}; quantised ones are not.",
            )
        return self._map(header.path).get_tensor(name)

    def close(self) -> None:
        """Lets go of the file that is mapped."""
        self._mapped = None

    def _map(self, path: Path) -> Any:
        if self._mapped is None or self._mapped[0] != path:
            self._mapped = None  # before the next one is mapped
            self._mapped = path, safe_open(path, framework="numpy")
        return self._mapped[1]


class _Header(NamedTuple):
    path: Path
    shape: tuple[int, ...]
    kind: str


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of a checkpoint.

    Raises:
      UserError: no such directory, no config.json in it, or not a JSON object.
    """
    if not directory.is_dir():
        raise UserError(
            f"No model directory {str(directory)!r}.",
            "Expected a folder with config.json and model.safetensors.",
        )
    path = directory / "config.json"
    if not path.is_file():
        raise UserError(
            f"No config.json in {str(directory)!r}.", "It says how the weights are to be used."
        )
    return read_object(path)


def write_config(directory: Path, raw_config: Mapping[str, Any], dtype: np.dtype) -> None:
    """Writes config.json beside weights that are stored in this dtype."""
    # `torch_dtype` is the older name of `dtype`; transformers reads it in every version.
    raw = {option: value for option, value in raw_config.items() if option != "dtype"}
    raw["torch_dtype"] = dtype.name
    (directory / "config.json").write_text(json.dumps(raw, indent=2) + "\n")


def write_tensors(
    directory: Path,
    shapes: Mapping[str, tuple[int, ...]],
    tensor: Callable[[str], np.ndarray],
    dtype: np.dtype,
    max_shard_bytes: int,
) -> None:
    """Writes tensors in the order of `shapes`, holding one shard at a time.

    Args:
      directory: where to; it must not hold weights yet.
      shapes: name to shape of everything to write.
      tensor: gives one tensor, of `dtype`.
      dtype: of storage.
      max_shard_bytes: a shard is closed before it grows beyond this; one tensor always fits.

    Raises:
      UserError: the directory holds weights already.
    """
    directory.mkdir(parents=True, exist_ok=True)
    present = sorted(path.name for path in directory.glob("model*.safetensors*"))
    if present:
        raise UserError(
            f"{str(directory)!r} already holds {present[0]}.",
            "Weights are not overwritten: name another directory, or remove them.",
        )
    sizes = {name: int(np.prod(shape)) * dtype.itemsize for name, shape in shapes.items()}
    shards = _shards(sizes, max_shard_bytes)
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        file = SINGLE
        if len(shards) > 1:
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        # transformers asks for the "format" entry; "pt" is the layout's name, not torch's presence.
        save_file(
            {name: np.ascontiguousarray(tensor(name)) for name in names},
            directory / file,
            metadata={"format": "pt"},
        )
        weight_map.update(dict.fromkeys(names, file))
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _shards(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _weight_files(directory: Path) -> list[Path]:
    if (directory / SINGLE).is_file():
        return [directory / SINGLE]
    index = directory / INDEX
    if not index.is_file():
        raise _no_weights(directory)
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(
            f"{index} has no weight_map.", "Expected a table of tensor name to shard file."
        )
    files = sorted({str(file) for file in weight_map.values()})
    for file in files:
        # A shard lies beside its index: a path could lead anywhere.
        if Path(file).name != file:
            raise UserError(
                f"{index} names the shard {file!r}.", "Expected a file name, without a folder."
            )
        if not (directory / file).is_file():
            missing = [f for f in files if not (directory / f).is_file()]
            raise UserError(
                f"{index} names {file}, which is missing ({len(missing)} of {len(files)} shards).",
                "Download or copy the missing shards.",
            )
    return [directory / file for file in files]


def _no_weights(directory: Path) -> UserError:
    pickles = sorted(path.name for pattern in _PICKLES for path in directory.glob(pattern))
    if not pickles:
        return UserError(
            f"No {SINGLE} and no {INDEX} in {str(directory)!r}.", "Weights are read from these."
        )
    command = (
        'python -c "from transformers import AutoModelForCausalLM as M; '
        f"M.from_pretrained('{directory}').save_pretrained('{directory}', "
        'safe_serialization=True)"'
    )
    return UserError(
        f"No safetensors in {str(directory)!r}, only pickle files ({pickles[0]}).",
        "Pickle is never loaded, because it runs the code that it holds.",
        f"If you trust the file, convert it once, where torch is installed: {command}",
    )


def read_object(path: Path) -> dict[str, Any]:
    """A file's JSON object.

    Raises:
      UserError: malformed, or no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a JSON {type(content).__name__}; expected an object.")
    return content
