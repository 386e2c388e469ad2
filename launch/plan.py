"""What a run would take on chips that aren't here: memory, exchanges, time, whether it fits.

    python -m launch.plan --model=llama-3-8b --topology=v5e:4x4 --mesh=fsdp=4,tensor=4
    python -m launch.plan --config=experiments/promptintern/mbpp.py --model=llama-2-7b \\
        --topology=h100:8 --mesh=fsdp=8

For TPUs (v5e, v5p, v6e) the training step and the programs of decoding are compiled as they would
be there, of shapes alone: no weights, and no TPU. This needs libtpu (the extra `plan`). For GPUs
(a100, h100, h200, b200) the same table is an estimate. --search tries meshes, batches and remat.

A model is a name of `launch/shapes`, a folder with a config.json, or a name on the hub; no
tokenizer is needed, lengths are flags.
"""

from __future__ import annotations

import os
from pathlib import Path

from absl import flags

from pintern import cli
from pintern.errors import UserError

_SHAPES = Path(__file__).parent / "shapes"

TOPOLOGY = flags.DEFINE_string(
    "topology",
    None,
    "KIND:SHAPE of the chips: v5e:4x4, v5p:4x4x4, h100:8; of several slices 2xv5e:4x4.",
    required=True,
)
MESH = flags.DEFINE_string(
    "mesh", None, "AXIS=SIZE,… over data, fsdp and tensor; others are 1. In place of config.mesh."
)
MODEL = flags.DEFINE_string(
    "model", None, "A name in launch/shapes or what config.model.path takes, in place of it."
)
PREFIX = flags.DEFINE_integer("prefix_tokens", 512, "Of the shared prefix.", lower_bound=0)
ROW = flags.DEFINE_integer(
    "row_tokens", 256, "Of a training row, examples and completion included.", lower_bound=1
)
TARGET = flags.DEFINE_integer(
    "target_tokens",
    None,
    "Of its completion; config.eval.max_new_tokens unless given.",
    lower_bound=1,
)
QUERY = flags.DEFINE_integer("query_tokens", 128, "Of a request's row in decoding.", lower_bound=1)
DECODING = flags.DEFINE_boolean("decoding", True, "Plan decoding too.")
EFFORT = flags.DEFINE_float(
    "effort",
    -1.0,
    "Of the TPU's compiler: 0 compiles as a run does, -1 in a fraction of the time, with up to a "
    "fifth more or less temporary memory.",
    lower_bound=-1.0,
    upper_bound=0.0,
)
LARGEST = flags.DEFINE_integer(
    "largest", 0, "List so many of each program's largest exchanges.", lower_bound=0
)
SEARCH = flags.DEFINE_boolean("search", False, "Try meshes, batches and remat; tell the best.")
BATCHES = flags.DEFINE_list(
    "batches",
    None,
    "With --search: rows of a step; config.train.batch_rows × 1, 2, 4 unless given.",
)
COMPILES = flags.DEFINE_integer(
    "compiles", 4, "With --search: how many choices to compile.", lower_bound=1
)


def main(_: list[str]) -> None:
    """Plans the config's run."""
    config = cli.config_from_flags()
    # Nothing runs here: whatever devices there are stay free, and times are those of compiling.
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    from launch.planning.chips import GIB, read_topology
    from launch.planning.programs import Lengths

    if MODEL.value is not None:
        config.model.path = MODEL.value
    raw, shape = _model(config)
    topology = read_topology(TOPOLOGY.value)
    if MESH.value is not None:
        config.mesh.update(_mesh(MESH.value))
    lengths = Lengths(
        PREFIX.value, ROW.value, TARGET.value or config.eval.max_new_tokens, QUERY.value
    )
    _check_lengths(config, shape, lengths)
    print(
        f"{config.model.path} on {topology.name}: {topology.count} × {topology.chip.name} with "
        f"{topology.chip.memory / GIB:g} GiB; prefix {lengths.prefix}, rows {lengths.row}, "
        f"completions {lengths.target}, queries {lengths.query} tokens"
    )
    training = []
    if SEARCH.value:
        best = _search(config, shape, topology, lengths.padded)
        config, training = best.config, [best.measured]
    _show(config, raw, shape, topology, lengths, training)


def _search(config, shape, topology, lengths):
    """The best choice; prints what was tried."""
    from launch.planning.search import line, search

    if BATCHES.value:
        batches = [_whole(number) for number in BATCHES.value]
    else:
        batches = [config.train.batch_rows * factor for factor in (1, 2, 4)]
    choices = search(
        config,
        shape,
        topology,
        lengths,
        batches=batches,
        compiles=COMPILES.value,
        effort=EFFORT.value,
        told=lambda text: print(text, flush=True),
    )
    if topology.devices is None:
        for choice in choices[: COMPILES.value]:
            print(line(choice, topology))
    best = choices[0]
    print(
        f"Best of what fits, by rows a second at published rates (an estimate: arithmetic or "
        f"memory, then exchanges):\n  {best.flags()}"
    )
    return best


def _show(config, raw, shape, topology, lengths, training) -> None:
    """Prints the table; `training` is the step where it is measured already."""
    from launch.planning.estimate import (
        abstract_mesh,
        estimate_decoding,
        estimate_training,
        step_flops,
    )
    from launch.planning.programs import abstract_base, parameter_count
    from launch.planning.table import largest, table
    from launch.planning.tpu import compile_decoding, compile_training

    mesh = abstract_mesh(config, topology.count)
    base = abstract_base(config, shape, mesh)
    sizes = " ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    print(
        f"{parameter_count(base) / 1e9:.2f}e9 weights; mesh {sizes}; a step of "
        f"{config.train.batch_rows} rows in {config.train.accumulate} micro-batches, "
        f"remat={config.model.remat}; decoding {config.eval.batch_rows} rows, "
        f"{config.eval.max_new_tokens} new tokens"
    )
    programs, padded = list(training), lengths.padded
    if topology.devices is None:
        if not programs:
            programs.append(estimate_training(config, shape, topology, padded))
        if DECODING.value:
            programs.append(estimate_decoding(config, shape, topology, lengths))
        print("No compiler for these chips: this is an estimate; a tenth of memory is left free.")
    else:
        if not programs:
            programs += compile_training(config, shape, topology, padded, effort=EFFORT.value)
        if DECODING.value:
            eos = raw.get("eos_token_id") or 0
            eos = eos[0] if isinstance(eos, list) else eos
            programs += compile_decoding(
                config, shape, topology, lengths, eos=eos, effort=EFFORT.value
            )
    needed = step_flops(config, shape, base, padded)
    print("\n" + table(programs, topology.chip, topology.count, needed))
    if LARGEST.value:
        print("\n" + largest(programs, LARGEST.value))
    print(
        "\nEstimated ms: at published rates, arithmetic or memory, whichever is longer, then all "
        "exchanges; nothing has been run."
    )


def _model(config):
    """config.json and the decoder that it describes."""
    from pintern.assemble import model_directory
    from pintern.models.checkpoint_files import read_config
    from pintern.models.families import decoder_config, family_of

    known = _SHAPES / config.model.path
    if (known / "config.json").is_file():
        raw = read_config(known)
    else:
        try:
            config.model.random_init = True  # of a name on the hub the config is enough
            raw = read_config(model_directory(config))
        except UserError as error:
            names = ", ".join(sorted(path.name for path in _SHAPES.iterdir()))
            raise UserError(f"{error} --model also takes these shapes: {names}.") from error
    return raw, decoder_config(family_of(raw), raw)


def _mesh(text: str) -> dict[str, int]:
    from pintern.models.sharding import AXES

    sizes = dict.fromkeys(AXES, 1)
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in sizes or not size.removeprefix("-").isdecimal():
            raise UserError(
                f"--mesh={text}: {part!r} is not one of {', '.join(f'{a}=SIZE' for a in AXES)}.",
                "E.g. --mesh=fsdp=32,tensor=8; one size may be -1, the rest.",
            )
        sizes[axis] = int(size)
    return sizes


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--batches: {text!r} is no number of rows.")
    return int(text)


def _check_lengths(config, shape, lengths) -> None:
    if lengths.target > lengths.row:
        raise UserError(
            f"--target_tokens={lengths.target} exceeds --row_tokens={lengths.row}.",
            "A row holds its completion.",
        )
    trained = lengths.prefix + config.adapter.soft_prompt + lengths.row
    served = lengths.prefix + config.adapter.soft_prompt + lengths.query
    longest = max(trained, served + config.eval.max_new_tokens)
    if longest > shape.max_positions:
        raise UserError(
            f"A prompt of {longest} tokens exceeds the model's context of {shape.max_positions}.",
            "Lower --prefix_tokens, --row_tokens or --query_tokens.",
        )


if __name__ == "__main__":
    cli.define_config()
    cli.run(main)
