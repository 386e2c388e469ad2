"""A run's folder: claimed by one config and one base, and read back by them alone.

config.json  base.json  examples.json  changes.jsonl  prompts/  checkpoints/  metrics.jsonl
timings.jsonl  tensorboard/  eval/  and, of some runs, teacher/  teacher.jsonl  stages/  replaced/
population.json  diverged.json
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from pintern.config import differences, from_json, to_json
from pintern.distributed import from_first
from pintern.errors import UserError
from pintern.files import write_atomically, writing
from pintern.folders import CHECKPOINTS, LOCK, check_folder
from pintern.locks import last_owner, try_lock
from pintern.models.checkpoint_files import read_object
from pintern.models.load import Checkpoint
from pintern.training.checkpoint import checkpoint_steps

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
CHANGES, EXAMPLES = "changes.jsonl", "examples.json"
# A model's folder has a config.json too. No config was ever without these.
_GROUPS = ("model", "task", "train")
# What a run has in its folder before it has trained anything, besides its config. Without
# base.json, which is first, the folder is anybody's: a kill may come as these are moved.
_LEFT = (
    "base.json",
    EXAMPLES,
    "population.json",
    "diverged.json",
    CHANGES,
    "prompts",
    "teacher.jsonl",
    *CHECKPOINTS,
    "metrics.jsonl",
    "timings.jsonl",
    "tensorboard",
)


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
    workdir: Path,
    config: ConfigDict,
    *,
    free: bool = False,
    on_request: bool = False,
    alone: bool = False,
) -> bool:
    """Makes the folder this run's own; True if the run is there already and is to be resumed.

    Args:
      workdir: the run's folder.
      config: the run's.
      free: fields that leave the result as it is may differ from those of the run that is there;
        `record_changes` is called once it is known to go on.
      on_request: so may those that lead to another result and can change in mid-run.
      alone: nobody else works in the folder (`only_training`), so that a run of another config may
        be set aside if it came to nothing.

    Raises:
      UserError: the folder holds a run of another config, or files that are not a run's.
    """
    _check_ours(workdir)
    path, text = workdir / "config.json", to_json(config)
    nothing = came_to_nothing(workdir)
    # A run that ended before its base was recorded has trained nothing: a wrong path, say.
    if is_begun(workdir) or (path.exists() and not nothing):
        try:
            _check_changes(workdir, config, free=free, on_request=on_request)
            return True
        except UserError:
            if not (alone and nothing):
                raise
    if path.exists():
        if path.read_text() == text:  # another process of this run was here
            return False
        set_aside(workdir, *_LEFT)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir={workdir} can't be written: {error.strerror}.") from error
    write_atomically(path, text)
    return False


def is_begun(workdir: Path) -> bool:
    """Whether a run has got as far as to its base."""
    return (workdir / "config.json").exists() and (workdir / "base.json").exists()


def came_to_nothing(workdir: Path) -> bool:
    """Whether a run has neither a step that is saved or written down nor an evaluation."""
    metrics = workdir / "metrics.jsonl"
    trained = metrics.exists() and metrics.stat().st_size > 0
    # A run that is stopped before its first step saves what it begins with, as step 0.
    saved = any(max(checkpoint_steps(workdir / kind), default=0) > 0 for kind in CHECKPOINTS)
    return not (trained or saved or (workdir / "eval").exists())


def set_aside(workdir: Path, *names: str) -> None:
    """Moves what such a run has left to `replaced/`: its prompts may have been edited by hand."""
    left = [name for name in names if (workdir / name).exists()]
    if not left:
        return
    place = workdir / "replaced"
    place = place / str(1 + (sum(1 for _ in place.iterdir()) if place.exists() else 0))
    with writing(place):
        place.mkdir(parents=True)
        shutil.copy(workdir / "config.json", place)
        for name in left:
            (workdir / name).rename(place / name)
    print(f"Nothing came of the run that {workdir} was begun with; it lies in {place}.")


def _check_ours(workdir: Path) -> None:
    check_folder(workdir, "config.json", "run")
    if (workdir / "config.json").exists():
        read_config(workdir)


def check_config(
    workdir: Path,
    config: ConfigDict,
    *,
    besides: tuple[str, ...] = (),
    mend: str = "Use another --workdir, or the same config to resume it.",
) -> None:
    """Refuses another config than the run's, but for fields whose names begin as `besides` says."""
    changed = _changed(workdir, config, besides)
    if changed:
        raise UserError(
            f"{workdir} holds a run of another config ({'; '.join(changed[:5])}).", mend
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
