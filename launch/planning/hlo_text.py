"""The text of a compiled program as computations of instructions."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

_BYTES = {
    **{"pred": 1, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "s4": 0.5, "u4": 0.5},
    **{"s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4},
    **{"s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16},
}
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An array in the text.

    Attributes:
      dtype: as HLO writes it.
      shape: its sizes.
      near: it lies in memory on the chip and not in HBM (memory space 1 of a TPU).
    """

    dtype: str
    shape: tuple[int, ...]
    near: bool = False

    @property
    def nbytes(self) -> int:
        """Without the padding of tiled layouts."""
        return math.ceil(_BYTES.get(self.dtype, 0) * math.prod(self.shape))


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: of its result.
      tensors: what it results in; several for a tuple.
      opcode: what it does.
      operands: names of its operands.
      attributes: the text behind them.
      arguments: the text between its brackets.
      root: whether it is the computation's result.
    """

    name: str
    tensors: tuple[Tensor, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    arguments: str
    root: bool


def parse(text: str) -> tuple[Mapping[str, list[Instruction]], str]:
    """Name to instructions of every computation, and the name of the entry."""
    computations: dict[str, list[Instruction]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%([\w.\-]+) \(.*\{$", line)
        if header:
            lines = computations[header.group(2)] = []
            entry = header.group(2) if header.group(1) else entry
        elif line.startswith("  ") and " = " in line:
            lines.append(_instruction(line.strip()))
    return computations, entry


def _instruction(line: str) -> Instruction:
    left, right = line.split(" = ", 1)
    ends = _closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    shape, rest = right[:ends], right[ends:].lstrip()
    opens = rest.index("(")
    closes = _closing(rest, opens)
    arguments = rest[opens + 1 : closes]
    return Instruction(
        name=left.removeprefix("ROOT ").lstrip("%"),
        tensors=_tensors(shape),
        opcode=rest[:opens],
        operands=tuple(NAME.findall(arguments)),
        attributes=rest[closes + 1 :],
        arguments=arguments,
        root=left.startswith("ROOT "),
    )


def _closing(text: str, start: int) -> int:
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    raise ValueError(f"unbalanced: {text[start : start + 80]}")


def _tensors(shape: str) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(dtype, _sizes(sizes), "S(1)" in layout)
        for dtype, sizes, layout in _ARRAY.findall(shape)
    )


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(",") if size)
