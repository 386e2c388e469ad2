"""What a run keeps of its stages' ends, beside its checkpoints."""

import shutil
from pathlib import Path

from pintern.curriculum import AdaptiveState
from pintern.distributed import first_before_others
from pintern.training.checkpoint import Checkpoints, checkpoint_steps, remove_checkpoint
from pintern.training.step import TrainState


def keep_stage(workdir: Path, step: int, state: TrainState, stage: AdaptiveState) -> None:
    """Keeps the state that a stage ends with."""
    kept = Checkpoints(workdir / "stages", keep=step)
    kept.save(step, state, stage)
    kept.close()


def forget_later(workdir: Path, step: int, *, changed: bool = False) -> None:
    """Removes what a run kept beyond the step that it is resumed from.

    Args:
      workdir: its folder.
      step: that step.
      changed: whether config or base changed: a teacher that the run would come by again is
        another one then, and so are its answers. Checkpoints of later steps are others too than
        those that were there and scored.
    """

    def remove() -> None:
        for name in ("stages", "teacher") if changed else ("stages",):
            for later in [kept for kept in checkpoint_steps(workdir / name) if kept > step]:
                remove_checkpoint(workdir / name, later)
                if name == "teacher":
                    (workdir / "teacher.jsonl").unlink(missing_ok=True)
        for scored in (workdir / "eval").glob("*") if changed else ():
            number = scored.name.partition("-")[0]
            if number.isdigit() and int(number) > step:
                shutil.rmtree(scored, ignore_errors=True)

    first_before_others(remove)
