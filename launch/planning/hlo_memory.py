"""Traffic to memory of a compiled program's instructions: an estimate.

Every instruction that isn't fused into another reads its operands and writes its result. What it
reads only a slice of (a layer's weights out of the stack) counts as the slice, and what it writes
in place (a layer's keys into the stack) as the part that is written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from launch.planning.hlo_text import Instruction, Tensor

Computations = Mapping[str, Sequence[Instruction]]

# They move nothing, or what they move is counted where it happens.
_SILENT = frozenset(
    "parameter constant tuple get-tuple-element bitcast while call conditional after-all".split()
)
_SLICES = ("dynamic-slice", "slice", "gather")
_UPDATE = "dynamic-update-slice"


def traffic(computations: Computations, name: str, instruction: Instruction) -> float:
    """Bytes that one instruction reads and writes.

    Args:
      computations: of the program.
      name: of the instruction's.
      instruction: one that isn't fused into another.
    """
    opcode = instruction.opcode
    if opcode in _SILENT or opcode.endswith(("-done", "-update")):
        return 0.0
    table = {i.name: i for i in computations[name]}
    if opcode in ("copy-start", "slice-start") and len(instruction.tensors) > 1:
        ends = instruction.tensors[:2]
        return min(end.nbytes for end in ends) * sum(not end.near for end in ends)
    operands = [table[operand].tensors for operand in instruction.operands if operand in table]
    if opcode in _SLICES:
        moved = sum(tensor.nbytes for tensor in instruction.tensors)
        return moved * (_any_far(operands[0]) + _any_far(instruction.tensors))
    if opcode == _UPDATE:
        return 2.0 * _far(operands[1]) if _any_far(instruction.tensors) else 0.0
    inner = _called(instruction)
    if opcode != "fusion" or inner is None:
        return _far(instruction.tensors) + sum(map(_far, operands))
    read = sum(
        min(_far(operand), _read(computations, inner, place))
        for place, operand in enumerate(operands)
    )
    return read + min(_far(instruction.tensors), _written(computations, inner))


def _called(instruction: Instruction) -> str | None:
    found = re.search(r"calls=%([\w.\-]+)", instruction.attributes)
    return found.group(1) if found else None


def _read(computations: Computations, name: str, place: int) -> float:
    """Bytes that a fused computation reads of its parameter number `place`."""
    lines = computations[name]
    parameter = next(
        (i for i in lines if i.opcode == "parameter" and i.arguments == str(place)), None
    )
    if parameter is None:
        return float("inf")
    total, names = 0.0, {parameter.name}
    for i in lines:
        used = [n for n, operand in enumerate(i.operands) if operand in names]
        if not used:
            continue
        if i.opcode == "bitcast":
            names.add(i.name)
        elif i.opcode in _SLICES and used == [0]:
            total += sum(tensor.nbytes for tensor in i.tensors)
        elif i.opcode == _UPDATE and used == [0]:
            continue
        elif i.opcode == "fusion" and _called(i) is not None:
            total += sum(_read(computations, _called(i), n) for n in used)
        else:
            return sum(tensor.nbytes for tensor in parameter.tensors)
    return total


def _written(computations: Computations, name: str) -> float:
    """Bytes that a fused computation writes."""
    table = {i.name: i for i in computations[name]}

    def of(i: Instruction) -> float:
        if i.opcode == "bitcast" and i.operands[0] in table:
            return of(table[i.operands[0]])
        if i.opcode == "tuple":
            return sum(of(table[operand]) for operand in i.operands)
        if i.opcode == _UPDATE:
            return sum(tensor.nbytes for tensor in table[i.operands[1]].tensors)
        if i.opcode == "fusion" and _called(i) is not None:
            return _written(computations, _called(i))
        return sum(tensor.nbytes for tensor in i.tensors)

    return of(next(i for i in computations[name] if i.root))


def _far(tensors: Sequence[Tensor]) -> float:
    return float(sum(tensor.nbytes for tensor in tensors if not tensor.near))


def _any_far(tensors: Sequence[Tensor]) -> bool:
    return any(not tensor.near for tensor in tensors)
