"""What a run writes down: metrics that repeat bit for bit, and timings that don't. Of several
processes the first one writes.

`metrics.jsonl` has a line per step and is the same in a resumed and an uninterrupted run;
`timings.jsonl` has rates, compilations and stalls; TensorBoard shows both.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pintern.distributed import is_first
from pintern.training.programs import Programs
from pintern.training.workdir import JsonLines

_SHOWN = ("loss", "kl", "grad_norm", "learning_rate", "keep_rate", "shots", "prompt_tokens")


class Recorder:
    """Writes a run's metrics.

    Args:
      workdir: the run's folder.
      first_step: step at which this process starts; later lines of an earlier one are cut.
      sharing: runs that train together; each is charged with its share of the time.
    """

    def __init__(self, workdir: Path, *, first_step: int, sharing: int = 1):
        self._since, self._sharing = time.perf_counter(), sharing
        self._tokens, self._steps, self._last = 0, 0, {}
        self._levels: dict[str, float] = {}
        self.last_loss: float | None = None
        self._writes = is_first()
        if not self._writes:
            return
        from tensorboardX import SummaryWriter

        self._metrics = JsonLines(workdir / "metrics.jsonl", before=first_step)
        self._timings = JsonLines(workdir / "timings.jsonl", before=first_step)
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step or None)

    def write(self, row: dict[str, Any]) -> None:
        """One step's metrics."""
        self.last_loss = row["loss"]
        if not self._writes:
            return
        self._metrics.write(**row)
        for name in _SHOWN:
            if name in row:
                self._board.add_scalar(name, row[name], row["step"])
        self._tokens += row["tokens"]
        self._steps += 1
        self._last = row

    def timing(self, programs: Programs) -> None:
        """Rates since the last call."""
        if not self._steps:
            return
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9) / self._sharing
        level = f"{self._last['keep_rate']:g}/{self._last['shots']}"
        self._levels[level] = self._levels.get(level, 0.0) + seconds
        row = {
            "step": self._last["step"],
            "seconds": round(seconds, 4),
            "tokens_per_second": round(self._tokens / seconds, 1),
            "padding": self._last["padding"],
            "level_seconds": round(self._levels[level], 3),
            "compiled_programs": programs.count,
            "compile_seconds": round(programs.compile_seconds, 3),
            "stall_seconds": round(programs.stall_seconds, 3),
        }
        self._timings.write(**row)
        self._board.add_scalar("tokens_per_second", row["tokens_per_second"], row["step"])
        self._since, self._tokens, self._steps = now, 0, 0

    def close(self, programs: Programs) -> None:
        """Writes what is left and closes the files."""
        if not self._writes:
            return
        self.timing(programs)
        for file in (self._metrics, self._timings, self._board):
            file.close()
