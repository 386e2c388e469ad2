"""What a compiled program does: its collectives, its FLOPs and its traffic to memory.

XLA's own cost analysis counts the body of a loop once, and a decoder's layers are a loop. Here a
computation counts as often as it runs: the entry once, a loop's body by its trip count. All numbers
are those of one device, which is what the text of a partitioned program describes.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterable

from launch.planning.hlo_memory import traffic
from launch.planning.hlo_text import NAME, Instruction, Tensor, parse

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
)
_RAGGED = "ragged-dot"
_CALLED = re.compile(r"(?:calls|body|true_computation|false_computation)=%([\w.\-]+)")
_LISTED = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange between devices.

    Attributes:
      kind: of `COLLECTIVES`.
      nbytes: a device's part of it each time: the larger of what it gives and what it gets.
      devices: that exchange with each other.
      times: how often it runs in a step.
      tensors: what it results in.
      where: the operation of the traced program that it comes from.
    """

    kind: str
    nbytes: int
    devices: int
    times: float
    tensors: tuple[Tensor, ...]
    where: str

    @property
    def wire_bytes(self) -> float:
        """Bytes that a device sends in a step, by ring algorithms."""
        share = (self.devices - 1) / max(self.devices, 1)
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
        return self.times * self.nbytes * factor


class Program:
    """The text of a compiled program, read.

    Args:
      text: HLO after all passes.
      loop_trips: how often a loop runs whose end depends on data (decoding until every row has
        ended); the longest it can take.
    """

    def __init__(self, text: str, *, loop_trips: int = 1):
        self._computations, self._entry = parse(text)
        self._loop_trips = loop_trips
        self._times: dict[str, float] = defaultdict(float)
        self._fused: set[str] = set()
        self._count(self._entry, 1.0)

    def collectives(self) -> list[Collective]:
        """Every exchange, the costliest first.

        A TPU spreads one over the operations that it overlaps with; these pieces share a channel
        and count as one.
        """
        by_channel: dict[str, Collective] = {}
        for name, instruction, times in self._running():
            kind = instruction.opcode.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            results = instruction.tensors
            given = self._operands(name, instruction)
            if instruction.opcode.endswith("-start") and len(results) > len(given):
                results = results[len(given) : 2 * len(given)]
            scattered = name.startswith("all-reduce-scatter")
            found = Collective(
                "reduce-scatter" if scattered else kind,
                max(_total(results), _total(given)),
                _group_size(instruction.attributes),
                times,
                results,
                _metadata(instruction.attributes),
            )
            channel = re.search(r"channel_id=(\d+)", instruction.attributes)
            key = channel.group(1) if channel else f"{name}/{instruction.name}"
            if key not in by_channel or found.times > by_channel[key].times:
                by_channel[key] = found
        return sorted(by_channel.values(), key=lambda c: -c.wire_bytes)

    def flops(self) -> float:
        """Of matrix products, two for each multiply-add; a step's on one device."""
        total = 0.0
        for name, instruction, times in self._running():
            count = _FLOPS.get(_product(instruction))
            if count is not None:
                total += times * count(instruction, *self._operands(name, instruction)[-2:])
        return total

    def opaque(self) -> set[str]:
        """Kernels whose FLOPs the text doesn't tell, by the operations that they come from."""
        return {
            _metadata(instruction.attributes) or instruction.name
            for _, instruction, _ in self._running()
            if "tpu_custom_call" in instruction.attributes
            and not instruction.name.startswith(_RAGGED)
        }

    def memory_bytes(self) -> float:
        """Read from and written to memory in a step by one device: an estimate."""
        return sum(
            times * traffic(self._computations, name, instruction)
            for name, instruction, times in self._running()
            if name not in self._fused
        )

    def _running(self) -> Iterable[tuple[str, Instruction, float]]:
        for name, times in self._times.items():
            for instruction in self._computations[name]:
                yield name, instruction, times

    def _operands(self, computation: str, instruction: Instruction) -> list[Tensor]:
        table = {i.name: i.tensors for i in self._computations[computation]}
        return [tensor for operand in instruction.operands for tensor in table.get(operand, ())]

    def _count(self, name: str, times: float) -> None:
        self._times[name] += times
        for instruction in self._computations[name]:
            trips = self._trips(name, instruction) if instruction.opcode == "while" else 1
            called = _CALLED.findall(instruction.attributes)
            for names in _LISTED.findall(instruction.attributes):
                called += NAME.findall(names)
            if instruction.opcode == "call":
                called += re.findall(r"to_apply=%([\w.\-]+)", instruction.attributes)
            for each in called:
                if instruction.opcode == "fusion":
                    self._fused.add(each)
                self._count(each, times * trips)

    def _trips(self, computation: str, loop: Instruction) -> int:
        known = re.search(r'known_trip_count":?\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known.group(1))
        found = re.search(r"condition=%([\w.\-]+)", loop.attributes)
        lines = {i.name: i for i in self._computations[found.group(1)]}
        ends = next(i for i in lines.values() if i.root)
        if ends.opcode != "compare" or "direction=LT" not in ends.attributes:
            return self._loop_trips
        counter, limit = (lines[operand] for operand in ends.operands)
        index = re.search(r"index=(\d+)", counter.attributes)
        if limit.opcode != "constant" or not index:
            return self._loop_trips
        # Scans count by one, from a constant that stands in the tuple that the loop begins with.
        outside = {i.name: i for i in self._computations[computation]}
        first = outside.get(outside[loop.operands[0]].operands[int(index.group(1))])
        while first is not None and first.opcode in ("copy", "bitcast"):
            first = outside.get(first.operands[0])
        start = int(first.arguments) if first is not None and first.opcode == "constant" else 0
        return int(limit.arguments) - start


def by_kind(collectives: Iterable[Collective]) -> dict[str, tuple[float, float]]:
    """Kind to how many run in a step, and their bytes on one device."""
    found: dict[str, tuple[float, float]] = {}
    for one in collectives:
        count, nbytes = found.get(one.kind, (0.0, 0.0))
        found[one.kind] = (count + one.times, nbytes + one.times * one.nbytes)
    return found


def _total(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _metadata(attributes: str) -> str:
    found = re.search(r'op_name="([^"]*)"', attributes)
    return found.group(1) if found else ""


def _group_size(attributes: str) -> int:
    """Devices that exchange with each other; 1 where nothing is said."""
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
    if listed:
        return len(listed.group(1).split(","))
    tiled = re.search(r"replica_groups=\[(\d+),(\d+)\]<=", attributes)
    if tiled:
        return int(tiled.group(2))
    named = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes)
    if named:
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", named.group(1))}
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named.group(2))
        return math.prod(int(part) if part else sizes[axis] for axis, part in axes)
    return 2 if "source_target_pairs" in attributes else 1


def _dot_flops(dot: Instruction, lhs: Tensor, rhs: Tensor) -> float:
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.attributes)
    axes = [int(axis) for axis in contracted.group(1).split(",") if axis] if contracted else []
    inner = math.prod(lhs.shape[axis] for axis in axes)
    return 2.0 * math.prod(dot.tensors[0].shape) * inner


def _convolution_flops(convolution: Instruction, lhs: Tensor, rhs: Tensor) -> float:
    """A TPU's matrix products are convolutions, whose batch axes are spatial ones.

    Along a spatial axis only places of the window that meet the input count, so that such a batch
    axis is counted once and not squared.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", convolution.attributes)
    of_input, of_kernel, of_output = labels.groups()
    window = re.search(r"window=\{([^}]*)\}", convolution.attributes)
    fields = dict(field.split("=") for field in window.group(1).split()) if window else {}
    spatial = sorted(label for label in of_kernel if label.isdigit())
    out = convolution.tensors[0].shape
    count = out[of_output.index("b")] * out[of_output.index("f")]
    count *= rhs.shape[of_kernel.index("i")]
    for place, label in enumerate(spatial):
        count *= _meetings(
            out[of_output.index(label)],
            rhs.shape[of_kernel.index(label)],
            lhs.shape[of_input.index(label)],
            stride=_along(fields.get("stride"), place, 1),
            before=_along(fields.get("pad"), place, 0),
            lhs_dilation=_along(fields.get("lhs_dilate"), place, 1),
            rhs_dilation=_along(fields.get("rhs_dilate"), place, 1),
        )
    return 2.0 * count


def _ragged_flops(product: Instruction, lhs: Tensor, rhs: Tensor) -> float:
    """Each row of `lhs` meets one of the matrices of `rhs`."""
    return 2.0 * math.prod(product.tensors[0].shape) * lhs.shape[-1]


def _product(instruction: Instruction) -> str:
    """Which of `_FLOPS` an instruction is, if any."""
    kernel = instruction.opcode == "custom-call" and instruction.name.startswith(_RAGGED)
    if kernel and not instruction.name.startswith(f"{_RAGGED}-metadata"):
        return _RAGGED
    return instruction.opcode


def _along(field: str | None, place: int, default: int) -> int:
    return int(field.split("x")[place].split("_")[0]) if field else default


def _meetings(
    outputs: int,
    window: int,
    inputs: int,
    *,
    stride: int,
    before: int,
    lhs_dilation: int,
    rhs_dilation: int,
) -> int:
    """Pairs of an output and a place of its window that lie on an input."""
    if (outputs, stride, before) == (1, 1, 0) and window == inputs:
        return window
    last = (inputs - 1) * lhs_dilation
    count = 0
    for place in range(window):
        offset = place * rhs_dilation - before
        for output in range(outputs):
            at = output * stride + offset
            count += 0 <= at <= last and at % lhs_dilation == 0
    return count


# By opcode; a TPU's ragged product is a kernel of that name, whose matrices are its last operands.
_FLOPS = {"dot": _dot_flops, "convolution": _convolution_flops, _RAGGED: _ragged_flops}
