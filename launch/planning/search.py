"""Tries meshes, batches and remat: every one by the estimate, the best of them by the compiler."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from ml_collections import ConfigDict

from launch.planning.chips import GIB, Topology
from launch.planning.estimate import estimate_training
from launch.planning.measure import Measured
from launch.planning.programs import Lengths
from launch.planning.tpu import compile_training
from pintern.errors import UserError
from pintern.models.config import DecoderConfig

_SPLITS = (1, 2, 4, 8)  # micro-batches of a step
# The estimate may be this far too high for a program that the compiler gets to fit after all.
_SLACK = 1.3


@dataclasses.dataclass(frozen=True)
class Choice:
    """One way to run.

    Attributes:
      config: with its mesh, batch and remat.
      measured: of the training step: compiled, or an estimate.
    """

    config: ConfigDict
    measured: Measured

    def rows_per_second(self, topology: Topology) -> float:
        """What choices are ranked by: training rows a second, at the chips' published rates."""
        return self.config.train.batch_rows / self.measured.estimated_seconds(topology.chip)

    def flags(self) -> str:
        """What a training command takes to run so."""
        fields = ("mesh.data", "mesh.fsdp", "mesh.tensor", "train.batch_rows", "train.accumulate")
        return " ".join(
            f"--config.{name}={self.config[name.split('.')[0]][name.split('.')[1]]}"
            for name in (*fields, "model.remat")
        )


def search(
    config: ConfigDict,
    shape: DecoderConfig,
    topology: Topology,
    lengths: Lengths,
    *,
    batches: Sequence[int],
    compiles: int,
    effort: float,
    told: Callable[[str], None] = lambda _: None,
) -> list[Choice]:
    """Choices that were looked at closely, the best first; for a TPU these are compiled.

    Args:
      config: of the run; its mesh, batch and remat are what is tried.
      shape: of the model.
      topology: to run on.
      lengths: of prompts and completions.
      batches: rows of an optimizer step to try.
      compiles: how many choices to compile.
      effort: of the compiler, see `measure`.
      told: is handed a line about each choice as it is compiled.

    Raises:
      UserError: no choice fits.
    """
    found = []
    for tried in variants(config, shape, topology, batches):
        found.append(Choice(tried, estimate_training(tried, shape, topology, lengths)))
    if not found:
        raise UserError(
            f"No mesh of {topology.count} chips splits batches of "
            f"{', '.join(map(str, batches))} rows.",
            "Give other batches, e.g. a multiple of the chips: --batches=N,M.",
        )
    found.sort(key=lambda choice: -choice.rows_per_second(topology))
    if topology.devices is None:
        fitting = [choice for choice in found if choice.measured.fits(topology.chip)]
        return _some(fitting, found, topology)
    likely = [c for c in found if c.measured.total <= _SLACK * topology.chip.memory]
    compiled: list[Choice] = []
    for choice in likely[:compiles]:
        *_, measured = compile_training(choice.config, shape, topology, lengths, effort=effort)
        compiled.append(Choice(choice.config, measured))
        told(line(compiled[-1], topology))
    fitting = [choice for choice in compiled if choice.measured.fits(topology.chip)]
    fitting.sort(key=lambda choice: -choice.rows_per_second(topology))
    return _some(fitting, found, topology)


def variants(
    config: ConfigDict, shape: DecoderConfig, topology: Topology, batches: Sequence[int]
) -> Iterator[ConfigDict]:
    """Every config to try: mesh shapes that the heads and the rows allow, batches, remat."""
    count = topology.count
    for tensor in _divisors(count):
        if shape.num_heads % tensor or shape.mlp_dim % tensor:
            continue
        for fsdp in _divisors(count // tensor):
            for rows in batches:
                for split in _SPLITS:
                    if rows % split or rows // split % (count // tensor):
                        continue
                    for remat in (False, True):
                        tried = config.copy_and_resolve_references()
                        tried.mesh.update(data=count // tensor // fsdp, fsdp=fsdp, tensor=tensor)
                        tried.train.update(batch_rows=rows, accumulate=split)
                        tried.model.remat = remat
                        yield tried


def line(choice: Choice, topology: Topology) -> str:
    """A choice in one line."""
    mesh, train, measured = choice.config.mesh, choice.config.train, choice.measured
    how = "estimate" if measured.seconds is None else f"compiled in {measured.seconds:.0f} s"
    fate = "fits" if measured.fits(topology.chip) else "does NOT fit"
    rate = "" if measured.refused else f", {choice.rows_per_second(topology):.4g} rows/s"
    return (
        f"data={mesh.data} fsdp={mesh.fsdp} tensor={mesh.tensor} rows={train.batch_rows} "
        f"accumulate={train.accumulate} remat={choice.config.model.remat}: "
        f"{measured.total / GIB:.2f} GiB {fate}{rate} ({how})"
    )


def _some(fitting: list[Choice], found: list[Choice], topology: Topology) -> list[Choice]:
    if fitting:
        return fitting
    least = min(found, key=lambda choice: choice.measured.total)
    raise UserError(
        f"Nothing that was tried fits on {topology.name}; by the estimate the smallest takes "
        f"{least.measured.total / GIB:.1f} GiB of {topology.chip.memory / GIB:g} a chip "
        f"({least.flags()}).",
        "Take more chips, shorter prompts, fewer rows, or --config.model.quantize=int8.",
    )


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
