"""Rows of data sets that a library keeps: `datasets` (hub, saved folders, Parquet) and tfds.

Both are imported late. Whatever they raise becomes one UserError with the first line of it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pintern.errors import UserError, first_line

Row = dict[str, Any]
Reader = Callable[[], list[Row]]

# What the sets call their splits, to what pintern calls them.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "dev": "dev",
    "val": "dev",
    "valid": "dev",
    "validation": "dev",
    "eval": "dev",
    "test": "test",
}
WHOLE = "all"  # a file whose name tells no split


def read_parquet(path: Path) -> list[Row]:
    """Rows of a Parquet file.

    Raises:
      UserError: it can't be read.
    """
    import datasets

    try:
        # Its own cache would keep a copy of every file ever read.
        with tempfile.TemporaryDirectory() as cache:
            return datasets.Dataset.from_parquet(
                str(path), cache_dir=cache, keep_in_memory=True
            ).to_list()
    # Arrow, `datasets` and the file system each have their own family of errors.
    except Exception as error:
        raise UserError(f"{path} can't be read as Parquet: {first_line(error)}") from error


def open_tfds(folder: Path) -> dict[str, Reader]:
    """Splits of a folder that tensorflow-datasets prepared as array_record, without TensorFlow.

    Raises:
      UserError: it can't be read, has no splits, or is in another format.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(folder)
        sources = {split: builder.as_data_source(split=split) for split in builder.info.splits}
    # tfds raises what it happens to meet: ValueError, KeyError, AssertionError, parse errors.
    except Exception as error:
        raise UserError(
            f"{folder} can't be read as a prepared tensorflow-datasets folder: {first_line(error)}",
            "Prepare it with download_and_prepare(file_format='array_record').",
        ) from error
    if not sources:
        raise UserError(f"{folder} has no splits.", "Prepare the data set again.")

    def reader(split: str) -> Reader:
        def read() -> list[Row]:
            try:
                rows = [_plain(sources[split][i]) for i in range(len(sources[split]))]
            except Exception as error:  # as above: a shard that is gone or cut off
                raise UserError(
                    f"{folder}, split {split} can't be read: {first_line(error)}",
                    "Prepare the data set again.",
                ) from error
            if not rows:
                raise UserError(f"{folder}, split {split} holds no rows.")
            return rows

        return read

    return {name: reader(split) for name, split in _named(sources, str(folder)).items()}


def _plain(value: Any) -> Any:
    """NumPy's and tfds' values as Python's own."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return value


def open_saved(folder: Path) -> dict[str, Reader]:
    """Splits of a folder that `save_to_disk` wrote; that of a single `Dataset` is `all`.

    Raises:
      UserError: it can't be read.
    """
    import datasets

    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:  # as above
        raise UserError(
            f"{folder} can't be read as a folder saved by `datasets`: {first_line(error)}"
        ) from error
    whole = isinstance(found, datasets.Dataset)
    return _splits_of({WHOLE: found} if whole else found, str(folder))


def open_hub(where: str) -> dict[str, Reader]:
    """Splits of `org/name[:config]` on the hub, or in its cache.

    Raises:
      UserError: offline, unknown, gated, or in a form that `datasets` doesn't read.
    """
    import datasets
    from huggingface_hub.utils import logging

    name, _, config = where.partition(":")
    # Offline it would print each of its attempts; the error below says all.
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        found = datasets.load_dataset(name, config or None)
    except Exception as error:  # offline, unknown, gated, a script, an unknown config
        raise UserError(
            f"config.task.data={where}: no such file or folder here, and as a data set on the hub "
            f"it can't be read: {first_line(error)}",
            "Check the name (org/name[:config]) and the network, or give a local file or folder.",
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    return _splits_of(found, where)


def _splits_of(found: Mapping[str, Any], where: str) -> dict[str, Reader]:
    def reader(split: str) -> Reader:
        def read() -> list[Row]:
            rows = found[split].to_list()
            if not rows:
                raise UserError(f"{where}, split {split} holds no rows.")
            return rows

        return read

    return {name: reader(split) for name, split in _named(found, where).items()}


def _named(splits: Iterable[str], where: str) -> dict[str, str]:
    """pintern's name of each split to the source's own."""
    named: dict[str, str] = {}
    for split in splits:
        name = SPLIT_NAMES.get(split, split)
        if name in named:
            raise UserError(
                f"{where} has two splits that mean {name}: {named[name]} and {split}.",
                "Give a folder with one file for each split.",
            )
        named[name] = split
    return named
