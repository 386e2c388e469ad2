"""A run's folder: claimed by one config and one base, and read back by them alone.

config.json  base.json  changes.jsonl  prompts/  checkpoints/  metrics.jsonl  timings.jsonl
tensorboard/  eval/
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from pintern.config import differences, from_json, to_json
from pintern.distributed import from_first
from pintern.errors import UserError
from pintern.files import write_atomically, writing
from pintern.folders import LOCK, check_folder
from pintern.locks import last_owner, try_lock
from pintern.models.checkpoint_files import read_object
from pintern.models.load import Checkpoint

# What says how often a run writes, and nothing of what it comes to: it may always change.
FREE = ("name:", "checkpoint.every:", "checkpoint.minutes:", "checkpoint.keep:", "train.log_every:")
# What may change where that is asked for. The rest has left its trace in the folder (templates,
# examples, the teacher and its answers) or in the checkpoint's shapes, so that a run of both would
# be of neither.
_ON_REQUEST = (
    "train.",
    "eval.",
    "mesh.",
    "checkpoint.",
    "adapter.dropout:",
    "curriculum.epsilon:",
    "curriculum.patience:",
    "curriculum.probe:",
    "distill.temperature:",
    "distill.top_k:",
    "distill.by_confidence:",
    "model.path:",
    "model.revision:",
    "model.remat:",
    "model.attention:",
    "model.unroll:",
)
CHANGES = "changes.jsonl"
# A model's folder has a config.json too. No config was ever without these.
_GROUPS = ("model", "task", "train")


@contextmanager
def only_training(*workdirs: Path) -> Iterator[None]:
    """Keeps every other training out of these folders while this one lasts.

    Several processes of one run enter together, and the first one holds the locks for all.

    Raises:
      UserError: another training has one of them, or it is no run's.
    """
    with ExitStack() as held:
        from_first(lambda: [_hold(workdir, held) for workdir in workdirs])
        yield


def _hold(workdir: Path, held: ExitStack) -> None:
    _check_ours(workdir)
    path = workdir / LOCK
    if not held.enter_context(try_lock(path, needed=False)):
        raise UserError(
            f"{workdir} is being trained by another process ({last_owner(path)}).",
            "Wait for its end, stop it, or use another --workdir.",
        )


def claim(
    workdir: Path, config: ConfigDict, *, free: bool = False, on_request: bool = False
) -> bool:
    """Makes the folder this run's own; True if the run is there already and is to be resumed.

    Args:
      workdir: the run's folder.
      config: the run's.
      free: fields that leave the result as it is may differ from those of the run that is there;
        `record_changes` is called once it is known to go on.
      on_request: so may those that lead to another result and can change in mid-run.

    Raises:
      UserError: the folder holds a run of another config, or files that are not a run's.
    """
    _check_ours(workdir)
    path = workdir / "config.json"
    # A run that ended before its base was recorded has trained nothing: a wrong path, say.
    if path.exists() and (workdir / "base.json").exists():
        _check_changes(workdir, config, free=free, on_request=on_request)
        return True
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir={workdir} can't be written: {error.strerror}.") from error
    write_atomically(path, to_json(config))
    return False


def _check_ours(workdir: Path) -> None:
    check_folder(workdir, "config.json", "run")
    if (workdir / "config.json").exists():
        read_config(workdir)


def check_config(workdir: Path, config: ConfigDict, *, besides: tuple[str, ...] = ()) -> None:
    """Refuses another config than the run's, but for fields whose names begin as `besides` says."""
    changed = _changed(workdir, config, besides)
    if changed:
        raise UserError(
            f"{workdir} holds a run of another config ({'; '.join(changed[:5])}).",
            "Use another --workdir, or the same config to resume it.",
        )


def _check_changes(workdir: Path, config: ConfigDict, *, free: bool, on_request: bool) -> None:
    fixed = _changed(workdir, config, FREE + _ON_REQUEST)
    if not free or (fixed and not on_request):
        check_config(workdir, config)
    elif fixed:
        raise UserError(
            f"{workdir} holds a run of another config, and these can't change in mid-run: "
            f"{'; '.join(fixed[:5])}.",
            "Its prompts, teacher or checkpoints were made by them. Use another --workdir, or give "
            "them as they were.",
        )
    elif not on_request and (changed := _changed(workdir, config, FREE)):
        raise UserError(
            f"{workdir} holds a run of another config ({'; '.join(changed[:5])}).",
            "Use another --workdir, or the same config to resume it; --allow_changed=config goes "
            f"on with the change and notes it in {CHANGES}.",
        )


def _changed(workdir: Path, config: ConfigDict, besides: tuple[str, ...]) -> list[str]:
    found = differences(read_config(workdir), config)
    return [change for change in found if not change.startswith(besides)]


def record_changes(
    workdir: Path, config: ConfigDict, checkpoint: Checkpoint, *, step: int
) -> list[str]:
    """Notes with what else than before a run goes on, and makes that its config and base.

    Returns:
      What changed, as `train.steps: 400 → 800`; also appended to changes.jsonl, with the step.
    """
    changed = _changed(workdir, config, ())
    recorded, base = _recorded_base(workdir), _base_of(checkpoint)
    if recorded["fingerprint"] != base["fingerprint"]:
        changed.append(f"base: {recorded} → {base}")
    if not changed:
        return []
    path = workdir / CHANGES
    lines = path.read_text().splitlines() if path.exists() else []
    line = json.dumps({"step": step, "changed": changed}, ensure_ascii=False)
    if line not in lines[-1:]:  # else a kill came between this and what follows
        write_atomically(path, "".join(f"{each}\n" for each in [*lines, line]))
    write_atomically(workdir / "base.json", json.dumps(base, indent=2) + "\n")
    write_atomically(workdir / "config.json", to_json(config))
    return changed


def check_base(workdir: Path, checkpoint: Checkpoint, *, may_change: bool = False) -> None:
    """Records the base of a new run; refuses another base for an old one."""
    path = workdir / "base.json"
    base = _base_of(checkpoint)
    if not path.exists():
        write_atomically(path, json.dumps(base, indent=2) + "\n")
        return
    recorded = _recorded_base(workdir)
    if recorded["fingerprint"] != base["fingerprint"] and not may_change:
        raise UserError(
            f"{workdir} was trained on another base: fingerprint {recorded['fingerprint'][:12]} "
            f"({recorded['path']}), not {checkpoint.fingerprint[:12]} ({checkpoint.directory}).",
            "Give the same checkpoint, or use another --workdir.",
        )


def _base_of(checkpoint: Checkpoint) -> dict[str, str]:
    return {"path": checkpoint.directory.name, "fingerprint": checkpoint.fingerprint}


def _recorded_base(workdir: Path) -> dict[str, str]:
    return read_record(workdir / "base.json", "path", "fingerprint")


def read_config(workdir: Path) -> ConfigDict:
    """The config that a run was started with.

    Raises:
      UserError: there is none, or config.json is something else's.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise UserError(
            f"{workdir} holds no run (no config.json).",
            "Train one first: python -m pintern.train --workdir=DIR.",
        )
    read_record(path, *_GROUPS)
    return from_json(path.read_text())


def read_record(path: Path, *names: str) -> dict[str, Any]:
    """The JSON object of a file that a run or study writes, which has these entries at least.

    Raises:
      UserError: it is something else's file, or damaged.
    """
    found = read_object(path)
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(
            f"{path} has no {missing[0]!r}: it is none that pintern wrote.",
            "Use another --workdir; nothing in it was touched.",
        )
    return found


class JsonLines:
    """A file of one JSON object a line, cut back to a step when a run resumes.

    Args:
      path: the file.
      before: keep only lines whose `step` is smaller.
    """

    def __init__(self, path: Path, *, before: int):
        kept = []
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    break  # the line that a kill cut short, and nothing is behind it
                if row["step"] < before:
                    kept.append(line)
        write_atomically(path, "".join(f"{line}\n" for line in kept))
        self._path = path
        with writing(path):
            self._file = path.open("ab", buffering=0)

    def write(self, **row: Any) -> None:
        """Appends a line and hands it to the system."""
        left = (json.dumps(row) + "\n").encode()
        with writing(self._path):
            while left:  # a disk that is nearly full takes a part
                left = left[self._file.write(left) :]

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
