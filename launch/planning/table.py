"""A plan as a readable table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from launch.planning.chips import GIB, Chip
from launch.planning.hlo import by_kind
from launch.planning.measure import PARTS, Measured


def table(programs: Sequence[Measured], chip: Chip, chips: int, needed: float | None) -> str:
    """One column a program: memory of a chip by part, exchanges, arithmetic, time.

    Args:
      programs: what was compiled or estimated.
      chip: on which.
      chips: how many there are.
      needed: FLOPs of the training step with nothing done twice; None leaves the line out.
    """
    lines = [["", *(one.name for one in programs)]]

    def add(label: str, cell: Callable[[Measured], str]) -> None:
        lines.append([label, *(cell(one) for one in programs)])

    add("memory of a chip (GiB)", lambda _: "")
    for part in PARTS:
        add(f"  {part}", lambda one, part=part: _gib(one.parts.get(part, 0)))
    add("  activations, temporaries", lambda one: _gib(one.temporaries))
    add("  results", lambda one: _gib(one.outputs))
    add("  program, layout", lambda one: _gib(one.other))
    add("  total", lambda one: _gib(one.total))
    add(f"  of {chip.memory / GIB:g} GiB", lambda one: f"{one.total / chip.memory:.0%}")
    add("fits", lambda one: "yes" if one.fits(chip) else "NO")
    kinds = sorted({kind for one in programs for kind in by_kind(one.collectives or ())})
    add("exchanges of a chip (count, MiB)", lambda _: "")
    for kind in kinds:
        add(f"  {kind}", lambda one, kind=kind: _exchange(one, kind))
    if not kinds:
        add("  none", lambda _: "")
    add("TFLOP of a chip", lambda one: _told(one, one.flops / 1e12, ".3g"))
    add("TFLOP of all chips", lambda one: _told(one, one.flops * chips / 1e12, ".4g"))
    if needed is not None:
        add(
            "  of it needed without remat",
            lambda one: (
                f"{needed / (one.flops * chips):.0%}"
                if one.name == "training step" and one.flops
                else ""
            ),
        )
    add("tokens", lambda one: f"{one.tokens:,}")
    add("estimated ms", lambda one: _told(one, 1e3 * one.estimated_seconds(chip), ".3g"))
    add(
        "compile seconds",
        lambda one: "(estimate)" if one.seconds is None else f"{one.seconds:.1f}",
    )
    if any(one.cpu_seconds for one in programs):
        add("  of all cores", lambda one: f"{one.cpu_seconds:.1f}" if one.cpu_seconds else "–")
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    rows += [f"{one.name}: the compiler says: {one.refused}." for one in programs if one.refused]
    rows += [
        f"{one.name}: not in its TFLOP: {', '.join(one.uncounted)}."
        for one in programs
        if one.uncounted
    ]
    return "\n".join(rows)


def largest(programs: Sequence[Measured], count: int) -> str:
    """The costliest exchanges of each program, and what they come from."""
    lines = []
    for one in programs:
        for each in (one.collectives or ())[:count]:
            shapes = ", ".join(f"{t.dtype}{list(t.shape)}" for t in each.tensors[:2])
            lines.append(
                f"{one.name}: {each.times:g} × {each.kind} of {each.nbytes / 2**20:.4g} MiB among "
                f"{each.devices}: {shapes} {each.where}"
            )
    return "\n".join(lines)


def _gib(nbytes: float) -> str:
    return f"{nbytes / GIB:.3f}" if nbytes else "–"


def _exchange(one: Measured, kind: str) -> str:
    count, nbytes = by_kind(one.collectives or ()).get(kind, (0, 0))
    return f"{count:g}, {nbytes / 2**20:,.1f}" if count else "–"


def _told(one: Measured, value: float, form: str) -> str:
    return "–" if one.refused else f"{value:{form}}"
