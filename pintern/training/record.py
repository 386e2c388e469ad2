"""What a run writes down: metrics that repeat bit for bit, and timings that don't. Of several
processes the first one writes.

`metrics.jsonl` has a line per step and is the same in a resumed and an uninterrupted run;
`timings.jsonl` has rates, compilations and stalls; TensorBoard shows both.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from pintern.distributed import is_first
from pintern.errors import UserError
from pintern.files import write_atomically, writing
from pintern.training.programs import Programs

_SHOWN = ("loss", "kl", "grad_norm", "learning_rate", "keep_rate", "shots", "prompt_tokens")
_FLUSH_SECONDS = 30


class Recorder:
    """Writes a run's metrics.

    Args:
      workdir: the run's folder.
      first_step: step at which this process starts; later lines of an earlier one are cut.
      since: of `time.perf_counter`, when its work began: a teacher may have answered before.
      sharing: runs that train together; each is charged with its share of the time.
    """

    def __init__(self, workdir: Path, *, first_step: int, since: float, sharing: int = 1):
        self._since, self._sharing = since, sharing
        self._tokens, self._steps, self._last = 0, 0, {}
        self._levels: dict[str, float] = {}
        self.last_loss: float | None = None
        self.last_kl: float | None = None
        self._writes = is_first()
        if not self._writes:
            return
        self._metrics = JsonLines(workdir / "metrics.jsonl", before=first_step)
        self._timings = JsonLines(workdir / "timings.jsonl", before=first_step)
        self._board = Board(workdir / "tensorboard", first_step=first_step)

    @property
    def told(self) -> str:
        """The last loss, for the progress bar: of a step without labelled pairs it is the KL."""
        if self.last_loss is None:
            return "loss=–"
        if self.last_loss == 0 and self.last_kl is not None:
            return f"kl={self.last_kl:.3f}"
        return f"loss={self.last_loss:.3f}"

    def write(self, row: dict[str, Any]) -> None:
        """One step's metrics."""
        self.last_loss, self.last_kl = row["loss"], row.get("kl")
        if not self._writes:
            return
        self._metrics.write(**row)
        for name in _SHOWN:
            if name in row:
                self._board.write(name, row[name], row["step"])
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
        self._board.write("tokens_per_second", row["tokens_per_second"], row["step"])
        self._since, self._tokens, self._steps = now, 0, 0

    def close(self, programs: Programs) -> None:
        """Writes what is left and closes the files."""
        if not self._writes:
            return
        self.timing(programs)
        for file in (self._metrics, self._timings, self._board):
            file.close()


class Board:
    """Scalars for TensorBoard.

    Written where they are told: tensorboardX's own SummaryWriter has a queue and a thread, which
    dies of a full disk, and then whoever fills the queue waits for ever.

    Args:
      directory: of the event files; made with the first scalar.
      first_step: what an earlier process told of this step and later ones is not shown.
    """

    def __init__(self, directory: Path, *, first_step: int):
        self._directory, self._first_step = directory, first_step
        self._file, self._flushed = None, 0.0

    def write(self, name: str, value: float, step: int) -> None:
        """A scalar's value at a step."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        with writing(self._directory):
            if self._file is None:
                self._open()
            self._file.write_event(
                Event(wall_time=time.time(), step=step, summary=scalar(name, value))
            )
            if time.monotonic() - self._flushed > _FLUSH_SECONDS:
                self._file.flush()
                self._flushed = time.monotonic()

    def close(self) -> None:
        """Closes the file, if there is one."""
        if self._file is not None:
            with writing(self._directory):
                self._file.close()

    def _open(self) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._directory.mkdir(exist_ok=True)
        self._file = EventsWriter(str(self._directory / "events"), f".{os.getpid()}")
        if self._first_step:
            start = SessionLog(status=SessionLog.START)
            self._file.write_event(Event(step=self._first_step, session_log=start))


class JsonLines:
    """A file of one JSON object a line, cut back to a step when a run resumes.

    Args:
      path: the file.
      before: keep only lines whose `step` is smaller.

    Raises:
      UserError: a line that is damaged, but for the last one, which a kill may have cut short.
    """

    def __init__(self, path: Path, *, before: int):
        lines = path.read_bytes().splitlines() if path.exists() else []
        steps = [_step_of(line) for line in lines]
        if None in steps[:-1]:
            raise UserError(
                f"{path}, line {steps.index(None) + 1} is damaged: it is no object with a step.",
                "Remove the line, or put the file back as it was.",
            )
        kept = [
            line
            for line, step in zip(lines, steps, strict=True)
            if step is not None and step < before
        ]
        write_atomically(path, b"".join(line + b"\n" for line in kept))
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


def _step_of(line: bytes) -> int | None:
    """The step of a line; None if it has none."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError):
        return None
    return step if isinstance(step, int) else None
