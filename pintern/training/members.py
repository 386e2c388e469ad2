"""The members of a population: which configs may train together, and where each of them stands.

Members share one program, so that what shapes it must be the same in all: the base, the tasks'
prompts, the adapter's shapes, the steps and the curriculum. `VARIED` is what may differ.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from pintern.config import differences, fingerprint
from pintern.errors import UserError
from pintern.files import write_atomically
from pintern.training.checkpoint import checkpoint_steps, remove_checkpoint
from pintern.training.workdir import read_record

# Numbers that the optimizer takes as arrays: one value a member.
RATES = ("learning_rate", "weight_decay", "clip", "final_rate")
VARIED = (
    "name",
    "seed",
    *(f"train.{name}" for name in RATES),
    "adapter.init_from",
    "adapter.soft_prompt_init",
    "adapter.soft_prompt_text",
    "adapter.soft_prompt_file",
)
RECORD = "population.json"
_DIVERGED = "diverged.json"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a member's training ended.

    Attributes:
      workdir: its run folder.
      state: `trained`, `diverged`, or `stopped` by a signal after a checkpoint.
      step: optimizer steps that it made.
      loss: of its last step that was finite; None before the first.
      message: what is wrong with a diverged one; else empty.
    """

    workdir: Path
    state: str
    step: int
    loss: float | None
    message: str = ""


def same_population(one: ConfigDict, two: ConfigDict) -> bool:
    """Whether two configs may be members of one population."""
    return not _misfits(one, two)


def check_members(configs: Sequence[ConfigDict], workdirs: Sequence[Path]) -> None:
    """Refuses what can't be one population.

    Raises:
      UserError: a field that must be the same and isn't, one that a population can't have, two
        equal members, or two in one folder.
    """
    if not configs:
        raise UserError("A population has no members.", "Give at least one config.")
    if len(configs) != len(workdirs):
        raise UserError(f"{len(configs)} configs have {len(workdirs)} folders; give each one.")
    folders = [path.resolve() for path in workdirs]
    for number, config in enumerate(configs):
        twin = next((i for i in range(number) if not differences(configs[i], config)), None)
        if twin is not None:
            raise UserError(
                f"Members {twin + 1} and {number + 1} of the population have the same config.",
                f"Let them differ in one of {', '.join(VARIED)}.",
            )
        if folders[number] in folders[:number]:
            raise UserError(f"Two members of the population have the folder {workdirs[number]}.")
        wrong = _misfits(configs[0], config)
        if wrong:
            raise UserError(
                f"Member {number + 1} of the population differs from the first in "
                f"{'; '.join(wrong[:5])}.",
                f"Members share one program and may differ in {', '.join(VARIED)}. Train the "
                "others apart.",
            )
    _check_supported(configs)


def _misfits(one: ConfigDict, two: ConfigDict) -> list[str]:
    return [line for line in differences(one, two) if line.split(":")[0] not in VARIED]


def _check_supported(configs: Sequence[ConfigDict]) -> None:
    """Options by which members would part ways."""
    first = configs[0]
    if first.curriculum.schedule == "adaptive":
        raise UserError(
            "config.curriculum.schedule is 'adaptive': each member would change its level at "
            "another step.",
            "Choose another schedule for a population, or train the members one by one.",
        )
    if first.curriculum.smoothing and len({config.seed for config in configs}) > 1:
        raise UserError(
            f"config.curriculum.smoothing is {first.curriculum.smoothing:g}: it draws the level of "
            "each step from config.seed, and members with other seeds would be at other levels.",
            "Set config.curriculum.smoothing=0 for a population, or keep the seed the same.",
        )
    if first.model.random_init and len({config.seed for config in configs}) > 1:
        raise UserError(
            "config.model.random_init draws the base from config.seed, and members with other "
            "seeds would need another base.",
            "Save one base and name it by config.model.path, or keep the seed the same.",
        )
    if first.model.attention == "cudnn":
        raise UserError(
            "config.model.attention is 'cudnn', which can't read a population's members at once.",
            "Set it to 'auto', or train the members one by one.",
        )


def select_group(configs: Sequence[ConfigDict], workdirs: Sequence[Path]) -> list[int]:
    """Numbers of the members to be trained, together, now; none when all are finished.

    Members that were begun together go on together, the finished ones too: what a member's numbers
    are to the last bit depends on how many stand beside it. Members that were added to a
    population whose others are finished make a population of their own.

    Raises:
      UserError: unfinished members that were begun with others than those given.
    """
    names = [fingerprint(config) for config in configs]
    records = [_read(path / RECORD, "members") for path in workdirs]
    open_ones = [
        i
        for i, (config, path) in enumerate(zip(configs, workdirs, strict=True))
        if not _finished(config, path)
    ]
    if not open_ones:
        return []
    begun = [i for i in open_ones if records[i] or saved_steps(workdirs[i])]
    if not begun:
        return open_ones
    i = begun[0]
    wanted = records[i] and records[i]["members"]
    group = [names.index(name) for name in wanted or [] if name in names]
    if not wanted or len(group) < len(wanted) or not set(open_ones) <= set(group):
        what = f"in a population of {len(wanted)}, and other members" if wanted else "alone, and it"
        raise UserError(
            f"{workdirs[i]} was begun {what} can't join now.",
            "Finish it as it was begun and add members then, or use another folder.",
        )
    return group


def claim_group(configs: Sequence[ConfigDict], workdirs: Sequence[Path]) -> None:
    """Records in each member's folder with whom it trains."""
    members = [fingerprint(config) for config in configs]
    for number, workdir in enumerate(workdirs):
        text = json.dumps({"members": members, "number": number}, indent=2)
        write_atomically(workdir / RECORD, text + "\n")


def common_step(workdirs: Sequence[Path]) -> int:
    """The last step at which every member has a checkpoint, or 0; later checkpoints are removed.

    A kill between two members' saves leaves one of them a save ahead. Diverged members have no say:
    they don't go on.
    """
    going_on = [path for path in workdirs if read_diverged(path) is None]
    if not going_on:
        return 0
    step = max(set.intersection(*({0, *saved_steps(path)} for path in going_on)))
    for path in going_on:
        for later in saved_steps(path):
            if later > step:
                remove_checkpoint(path / "checkpoints", later)
    return step


def saved_steps(workdir: Path) -> list[int]:
    """Steps of a run's checkpoints."""
    return checkpoint_steps(workdir / "checkpoints")


def read_diverged(workdir: Path) -> dict | None:
    """`step` and `message` of a member that diverged."""
    return _read(workdir / _DIVERGED, "step", "message")


def write_diverged(workdir: Path, step: int, message: str) -> None:
    """Marks a member as diverged."""
    text = json.dumps({"step": step, "message": message}, indent=2)
    write_atomically(workdir / _DIVERGED, text + "\n")


def outcome_of(config: ConfigDict, workdir: Path) -> Outcome:
    """How a member stands, by its folder."""
    diverged = read_diverged(workdir)
    path = workdir / "metrics.jsonl"
    whole = path.read_text().rpartition("\n")[0] if path.exists() else ""  # a kill may cut a line
    loss = json.loads(whole.splitlines()[-1])["loss"] if whole else None
    if diverged is not None:
        return Outcome(workdir, "diverged", diverged["step"], loss, diverged["message"])
    step = max(saved_steps(workdir), default=0)
    return Outcome(workdir, "trained" if step >= config.train.steps else "stopped", step, loss)


def _finished(config: ConfigDict, workdir: Path) -> bool:
    return read_diverged(workdir) is not None or config.train.steps in saved_steps(workdir)


def _read(path: Path, *names: str) -> dict | None:
    return read_record(path, *names) if path.exists() else None
