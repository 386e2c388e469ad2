"""Where a model's files are: a folder of this machine, or a name on the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pintern.errors import UserError

# What `load` and the tokenizer read. No pickle is ever fetched, nor copies in other layouts
# (consolidated*.safetensors), nor what lies in subfolders.
_WANTED = ("*.json", "model*.safetensors", "tokenizer*", "merges.txt", "vocab.txt", "*.jinja")
_UNWANTED = ("*/*",)
# What other libraries read of encoders and classifiers, some of whose parts lie in subfolders.
_OTHERS_WANTED = ("*.json", "*.txt", "*.safetensors", "*.model")
_OTHERS_UNWANTED = ("onnx/*", "openvino/*")
_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


def resolve_model(path: str, revision: str = "", *, weights: bool = True) -> Path:
    """The folder of a model: `path` itself where it exists, else the hub's copy in the cache.

    A file that the cache has is not fetched again. The cache, a token for gated models and offline
    mode are huggingface_hub's own (HF_HOME, HF_TOKEN, HF_HUB_OFFLINE).

    Args:
      path: a folder, or `org/name`.
      revision: of `org/name`: branch, tag or commit; empty is the newest of the main branch.
      weights: refuse a copy without safetensors; False where the weights are not read.

    Raises:
      UserError: neither a folder nor a name that the hub or its cache knows, or a name on the hub
        without safetensors.
    """
    folder = Path(path)
    if folder.exists() or not _NAME.fullmatch(path):
        if revision and folder.exists():
            raise UserError(
                f"config.model.revision is {revision!r}, but config.model.path={path} is a folder "
                "of this machine, which has no revisions.",
                "Leave the revision out; to mean the hub's model, work in another folder.",
            )
        return folder
    found = _fetch("model.path", path, revision, _WANTED, _UNWANTED)
    if weights and not any(found.glob("model*.safetensors*")):
        raise UserError(
            f"The hub's {path} holds no model.safetensors, of which weights are read.",
            "Pickle weights are never loaded: fetch and convert them by transformers' "
            "save_pretrained(DIR, safe_serialization=True), and give --config.model.path=DIR.",
        )
    return found


def resolve_other(field: str, path: str) -> str:
    """The folder of a model that another library loads: it would ask the hub for file after file,
    with a minute of attempts at each where there is no network.

    Args:
      field: of the config, for messages.
      path: a folder, or `org/name`; anything else is left to the library.

    Raises:
      UserError: the hub and its cache know no such model.
    """
    if Path(path).exists() or not _NAME.fullmatch(path):
        return path
    return str(_fetch(field, path, "", _OTHERS_WANTED, _OTHERS_UNWANTED))


def _fetch(
    field: str, name: str, revision: str, wanted: Sequence[str], unwanted: Sequence[str]
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    said = f"config.{field}={name}: there is no such folder, and"
    at = f" at revision {revision!r}" if revision else ""
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision or None,
                allow_patterns=list(wanted),
                ignore_patterns=list(unwanted),
            )
        )
    except GatedRepoError as error:
        raise UserError(
            f"{said} the hub's {name} is gated.",
            "Accept its terms on its page, and log in (hf auth login) or set HF_TOKEN.",
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(
            f"The hub's {name} has no revision {revision!r}.",
            "config.model.revision takes a branch, a tag or a whole commit id.",
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"{said} the hub has no model of this name that you may read.",
            "Check the spelling; for a private model log in (hf auth login) or set HF_TOKEN.",
        ) from error
    except (LocalEntryNotFoundError, HTTPError, OSError) as error:
        reason = "HF_HUB_OFFLINE is set" if _offline() else "the hub can't be reached"
        raise UserError(
            f"{said} {reason} while its cache lacks this model{at}.",
            f"Fetch it once with a network (hf download {name}), or give a folder that holds it.",
        ) from error


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
