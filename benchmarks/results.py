"""What every benchmark here gives: results in one form, their table, their file."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from absl import flags

from benchmarks.measure import Timing

OUT = Path(__file__).parent / "out"


@dataclasses.dataclass(frozen=True)
class Result:
    """One measured comparison.

    Attributes:
      name: by which other tools find it.
      ratio: how many times better ours is than the peer's; above 1 is better.
      ours: median, in `unit`.
      peer: the peer's median, in `unit`; None where there is no peer.
      floor: the least that this machine allows, in `unit`; None where there is none.
      unit: `s`, `MB`, `tokens/s`, ….
    """

    name: str
    ratio: float | None
    ours: float
    peer: float | None
    floor: float | None
    unit: str

    @classmethod
    def of(cls, name: str, ours: Timing, peer: Timing, floor: float | None) -> Result:
        """That of two timings."""
        return cls(name, peer.median / ours.median, ours.median, peer.median, floor, "s")


def as_usual(*names: str, among: flags.FlagValues = flags.FLAGS) -> bool:
    """Whether these flags, which change what is measured, are at their defaults.

    Results are kept only then: their names don't tell. Otherwise that is told.
    """
    changed = [name for name in names if not among[name].using_default_value]
    if changed:
        print(f"Nothing is kept in {OUT.name}/: changed are --{', --'.join(changed)}.")
    return not changed


def show(results: Iterable[Result], targets: Mapping[str, float] | None = None) -> None:
    """Prints a table; with `targets`, what ratio each was to reach, and whether it did."""
    from rich.console import Console
    from rich.table import Table

    targets = targets or {}
    table = Table("name", *(["target"] if targets else []), box=None, pad_edge=False)
    for head in ("ratio", "ours", "peer", "floor", "of floor"):
        table.add_column(head, justify="right")
    table.add_column("unit")
    for result in results:
        goal = targets.get(result.name)
        met = "" if goal is None else f"≥ {goal:g}× {'yes' if result.ratio >= goal else 'NO'}"
        reach = result.floor / result.ours if result.floor else None
        table.add_row(
            result.name,
            *([met] if targets else []),
            "-" if result.ratio is None else f"{result.ratio:.2f}×",
            *(_number(x) for x in (result.ours, result.peer, result.floor)),
            "-" if reach is None else f"{reach:.0%}",
            result.unit,
        )
    Console(width=max(132, Console().width)).print(table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def save(results: Iterable[Result], kind: str, *, failed: str = "") -> Path:
    """Merges the results by name into `benchmarks/out/<kind>.json`.

    Args:
      results: of this run.
      kind: `cpu` or `gpu`.
      failed: a case that failed: what an earlier run found of it is taken out.
    """
    path = OUT / f"{kind}.json"
    known = json.loads(path.read_text()) if path.is_file() else []
    rows = {row["name"]: row for row in known}
    if failed:
        rows = {n: row for n, row in rows.items() if not f"{n}_".startswith(f"{failed}_")}
    rows |= {result.name: dataclasses.asdict(result) for result in results}
    OUT.mkdir(exist_ok=True)
    whole = path.with_suffix(".new")  # a run that is killed here leaves the old file
    whole.write_text(json.dumps(list(rows.values()), indent=2) + "\n")
    return whole.replace(path)


class UnequalError(Exception):
    """The two sides don't compute the same; what they took means nothing."""


class Record:
    """What a command has measured, kept case by case: one that fails costs the others nothing.

    Args:
      kind: of the file, as in `save`; None keeps nothing.
    """

    def __init__(self, kind: str | None):
        self._kind = kind
        self._results: list[Result] = []
        self._failed: list[str] = []

    @contextlib.contextmanager
    def case(self, name: str) -> Iterator[list[Result]]:
        """Within it a case is measured; it appends its results to the list.

        They are saved when it ends. Whatever it raises is told, and nothing of it is kept; names of
        its results begin with its own.
        """
        found: list[Result] = []
        try:
            yield found
        except Exception as error:
            self._failed.append(name)
            if not isinstance(error, UnequalError):
                traceback.print_exc()
            told = (str(error).splitlines() or [""])[0]
            print(f"{name}: FAILED: {type(error).__name__}: {told}", flush=True)
            if self._kind:
                save([], self._kind, failed=name)
            return
        finally:
            gc.collect()  # a device's memory, which the case may have left in cycles
        self._results += found
        if self._kind:
            save(found, self._kind)

    def finish(self, targets: Mapping[str, float] | None = None) -> None:
        """Prints the table; exits with 1 where a case failed."""
        show(self._results, targets)
        if self._failed:
            print(f"failed: {'; '.join(self._failed)}")
            sys.exit(1)
