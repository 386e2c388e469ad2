"""The planner: programs of known content, memory of real arrays, and a real compile for a TPU."""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from launch.planning.chips import read_topology
from launch.planning.estimate import (
    abstract_mesh,
    estimate_decoding,
    estimate_training,
    step_flops,
)
from launch.planning.hlo import Program
from launch.planning.programs import Lengths, abstract_base, abstract_batch, parameter_count
from launch.planning.search import search, variants
from pintern.config import default_config
from pintern.errors import UserError
from pintern.models.families import decoder_config, family_of
from pintern.models.sharding import make_mesh

REPOSITORY = Path(__file__).parents[1]
SHAPES = REPOSITORY / "launch" / "shapes"
LENGTHS = Lengths(prefix=512, row=256, target=64, query=128)


def shape_of(name):
    raw = json.loads((SHAPES / name / "config.json").read_text())
    return decoder_config(family_of(raw), raw)


def config_of(rows=16, **mesh):
    config = default_config()
    config.mesh.update({"data": 1, "fsdp": 1, "tensor": 1, **mesh})
    config.train.batch_rows = rows
    config.model.remat = True
    return config


def run(*arguments, script=("-m", "launch.plan"), timeout=900):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests'}",
    }
    return subprocess.run(
        [sys.executable, *script, *arguments],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=environment,
        timeout=timeout,
        check=False,
    )


# ── what a compiled program says of itself: eight virtual devices, in a process of their own ──


@pytest.fixture(scope="module")
def eight():
    done = run(script=(str(REPOSITORY / "tests" / "plan_on_eight_devices.py"),))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_collectives_of_known_programs_are_told_by_kind_count_bytes_and_devices(eight):
    # Each device has 8 rows of 32 float32, 1,024 bytes; "inner" has 4 devices and "outer" 2.
    found = eight["collectives"]
    assert found["nothing"]["kinds"] == {}
    assert found["all_gather"] == {
        "kinds": {"all-gather": [1, 4096]},
        "devices": [4],
        "wire": 3072,  # what the three others have
        "flops": 0,
    }
    assert found["psum"]["kinds"] == {"all-reduce": [1, 1024]}
    assert (found["psum"]["devices"], found["psum"]["wire"]) == ([2], 1024)
    assert found["psum_scatter"]["kinds"] == {"reduce-scatter": [1, 1024]}
    assert found["psum_scatter"]["wire"] == 768
    assert found["all_to_all"]["kinds"] == {"all-to-all": [1, 1024]}
    assert found["ppermute"]["kinds"] == {"collective-permute": [7, 7 * 1024]}


@pytest.mark.slow
def test_what_is_in_loops_counts_as_often_as_they_run(eight):
    found = eight["collectives"]
    assert found["gather_in_loop"]["kinds"] == {"all-gather": [5, 5 * 4096]}
    assert found["gather_in_loops"]["kinds"] == {"all-gather": [15, 15 * 4096]}
    assert found["while"]["kinds"] == {"all-reduce": [11, 11 * 1024]}  # as often as it is told
    assert found["products"]["flops"] == 6 * 2 * (2 * 8 * 8 * 32)


@pytest.mark.slow
def test_planned_memory_is_that_of_the_arrays_a_run_really_places(eight):
    plan = eight["plan"]
    step, *decoding = plan["programs"]
    assert [one["name"] for one in decoding] == ["read prefix", "read rows", "admit rows", "decode"]
    assert plan["same"]  # shapes, dtypes and places, leaf by leaf
    for part, nbytes in plan["real"].items():
        assert step["parts"][part] == plan["estimate"]["parts"][part] == nbytes
    # 2 layers of keys and values, [row or prefix slot] × 4 heads × 4, float32, however placed.
    assert decoding[3]["parts"]["cache"] > decoding[1]["parts"]["cache"] > 0
    assert step["temporaries"] > 0 and step["refused"] is None


@pytest.mark.slow
def test_compiled_flops_are_the_architectures_and_a_bit(eight):
    step, estimate = eight["plan"]["programs"][0], eight["plan"]["estimate"]
    assert 1.0 <= step["flops"] / estimate["flops"] < 1.4  # LoRA, and what is done twice
    assert set(step["kinds"]) >= {"all-gather", "all-reduce"}


def test_a_loop_on_one_device_has_its_flops_and_no_collective():
    def run(x):
        return jax.lax.fori_loop(0, 9, lambda _, x: x @ x, x)

    text = jax.jit(run).lower(jax.ShapeDtypeStruct((16, 16), np.float32)).compile().as_text()
    program = Program(text)
    assert program.flops() == 9 * 2 * 16**3
    assert program.collectives() == []
    assert program.memory_bytes() >= 9 * 3 * 16 * 16 * 4


_TPU_TEXT = """HloModule jit_step, is_scheduled=true

%cond (p.0: (s32[], bf16[8,64])) -> pred[] {
  %limit = s32[]{:T(128)} constant(32)
  %p.0 = (s32[]{:T(128)}, bf16[8,64]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p.0), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%all-reduce-scatter.1 (p.1: bf16[8,64]) -> bf16[2,64] {
  %p.1 = bf16[8,64]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-reduce.1 = bf16[8,64]{1,0:T(8,128)(2,1)} all-reduce(%p.1), channel_id=1, \
replica_groups=mesh['axis_0'=4,'axis_1'=4] {'axis_1'}, to_apply=%add
}

%piece.1 (p.2: bf16[2,64]) -> bf16[8,64] {
  %p.2 = bf16[2,64]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[8,64]{1,0:T(8,128)(2,1)S(1)} all-gather(%p.2), channel_id=7, \
replica_groups=mesh['axis_0'=2,'axis_1'=8] {'axis_0','axis_1':(1)2}, dimensions={0}
}

%piece.2 (p.3: bf16[2,64]) -> bf16[8,64] {
  %p.3 = bf16[2,64]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[8,64]{1,0} all-gather(%p.3), channel_id=7, \
replica_groups=[4,4]<=[16], dimensions={0}
}

%body (p.4: (s32[], bf16[8,64])) -> (s32[], bf16[8,64]) {
  %p.4 = (s32[]{:T(128)}, bf16[8,64]{1,0:T(8,128)(2,1)}) parameter(0)
  %x = bf16[8,64]{1,0:T(8,128)(2,1)} get-tuple-element(%p.4), index=1
  %w = bf16[64,64]{1,0:T(8,128)(2,1)} constant({...})
  %y = bf16[8,64]{1,0} convolution(%x, %w), dim_labels=bf_io->bf
  %a = bf16[3,8,64]{2,1,0} constant({...})
  %b = bf16[3,64,16]{2,1,0} constant({...})
  %batched = bf16[3,8,16]{2,1,0} convolution(%a, %b), \
window={size=3 stride=2 pad=0_0 lhs_dilate=3}, dim_labels=0bf_0io->0bf
  %part = bf16[2,64]{1,0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.1
  %started = bf16[8,64]{1,0} fusion(%part), kind=kCustom, calls=%piece.1
  %done = bf16[8,64]{1,0} fusion(%part), kind=kCustom, calls=%piece.2
  %one = s32[] constant(1)
  %j = s32[] get-tuple-element(%p.4), index=0
  %next = s32[] add(%j, %one)
  ROOT %out = (s32[], bf16[8,64]{1,0}) tuple(%next, %done)
}

ENTRY %main (p.5: bf16[8,64]) -> bf16[8,64] {
  %p.5 = bf16[8,64]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %first = (s32[], bf16[8,64]{1,0}) tuple(%zero, %p.5)
  %loop = (s32[], bf16[8,64]{1,0}) while(%first), condition=%cond, body=%body
  ROOT %r = bf16[8,64]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_text_as_the_tpu_compiler_writes_it():
    program = Program(_TPU_TEXT)
    gather, scatter = sorted(program.collectives(), key=lambda one: one.kind)
    # Two pieces of one exchange, which share its channel; 32 trips by the loop's condition.
    assert (gather.kind, gather.nbytes, gather.devices, gather.times) == ("all-gather", 1024, 4, 32)
    assert (scatter.kind, scatter.nbytes, scatter.devices) == ("reduce-scatter", 1024, 4)
    # The batch of 3 is a spatial axis there: each output meets one place of its window.
    assert program.flops() == 32 * 2 * (8 * 64 * 64 + 3 * 8 * 16 * 64)


# ── the estimate for GPUs ──


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("llama-2-7b", 6.738),
        ("llama-2-13b", 13.016),
        ("llama-3-8b", 8.030),
        ("llama-3-70b", 70.554),
        ("mixtral-8x7b", 46.703),
    ],
)
def test_shapes_have_as_many_weights_as_the_models_that_they_are_named_after(name, billions):
    base = abstract_base(config_of(), shape_of(name), abstract_mesh(config_of(), 1))
    assert parameter_count(base) / 1e9 == pytest.approx(billions, abs=5e-4)


def test_weights_are_split_over_fsdp_and_tensor_and_not_over_data():
    shape, topology = shape_of("llama-3-8b"), read_topology("h100:8")
    one = estimate_training(config_of(data=8), shape, topology, LENGTHS).parts["weights"]
    split = [
        estimate_training(config_of(**mesh), shape, topology, LENGTHS).parts["weights"]
        for mesh in ({"fsdp": 8}, {"tensor": 8}, {"fsdp": 2, "tensor": 4})
    ]
    # All but the norms, some hundred kilobytes, is split eightfold.
    assert split == pytest.approx([one / 8] * 3, rel=1e-3)
    assert one == pytest.approx(2 * 8.030e9, rel=1e-3)


def test_the_estimate_knows_what_fits():
    shape = shape_of("llama-3-70b")
    topology = read_topology("h100:8")
    whole = estimate_training(config_of(data=8), shape, topology, LENGTHS)
    split = estimate_training(config_of(fsdp=8), shape, topology, LENGTHS)
    assert not whole.fits(topology.chip) and split.fits(topology.chip)
    kept = config_of(fsdp=8)
    kept.model.remat = False
    assert estimate_training(kept, shape, topology, LENGTHS).temporaries > split.temporaries
    assert estimate_decoding(config_of(fsdp=8), shape, topology, LENGTHS).parts["cache"] > 0


def test_keys_that_do_not_go_round_are_whole_on_every_chip():
    """Of eight key-value heads sixteen chips hold all, as `models.sharding.whole_heads` has it."""
    shape = shape_of("llama-3-70b")
    eight, sixteen = (
        estimate_decoding(config_of(**mesh), shape, read_topology("h100:16"), LENGTHS)
        for mesh in ({"tensor": 8, "data": 2}, {"tensor": 16})
    )
    rows = (512 + 64 * 192) / (512 + 32 * 192)  # whose rows lie on two
    assert sixteen.parts["cache"] == pytest.approx(8 * rows * eight.parts["cache"])
    assert sixteen.temporaries > 8 * eight.temporaries


def test_flops_grow_with_rows_and_a_prefix_is_read_once():
    shape = shape_of("llama-3-8b")
    base = abstract_base(config_of(), shape, abstract_mesh(config_of(), 1))
    few, many = (step_flops(config_of(rows=rows), shape, base, LENGTHS) for rows in (8, 16))
    more = step_flops(config_of(rows=24), shape, base, LENGTHS)
    assert many - few == pytest.approx(more - many)  # rows cost alike, and the prefix is apart
    assert many < 2 * few


def test_a_prefix_that_does_not_go_round_is_read_by_every_chip():
    """The compiler's own count has it so: eight times the work, and not as many chips' share."""
    shape, topology = shape_of("llama-3-8b"), read_topology("h100:8")
    short = dataclasses.replace(LENGTHS, row=8, target=8)

    def flops(prefix, soft=0, **mesh):
        config = config_of(rows=8, **mesh)
        config.adapter.soft_prompt = soft
        lengths = dataclasses.replace(short, prefix=prefix)
        return estimate_training(config, shape, topology, lengths).flops

    assert flops(508, fsdp=8) > 5 * flops(512, fsdp=8)
    assert flops(512, soft=4, fsdp=8) > 5 * flops(512, fsdp=8)
    assert flops(508, soft=4, fsdp=8) == pytest.approx(flops(512, fsdp=8))
    assert flops(508, tensor=8) == pytest.approx(flops(512, tensor=8), rel=0.02)


def test_training_is_planned_for_lengths_that_a_run_pads_to():
    assert Lengths(509, 250, 60, 127).padded == Lengths(512, 256, 64, 127)
    assert Lengths(0, 8, 8, 1).padded == Lengths(0, 8, 8, 1)


def test_the_search_takes_what_fits_and_ranks_it_by_rows_a_second():
    shape, topology = shape_of("llama-3-70b"), read_topology("h100:8")
    found = search(
        config_of(rows=16), shape, topology, LENGTHS, batches=[16, 32], compiles=1, effort=-1.0
    )
    rates = [choice.rows_per_second(topology) for choice in found]
    assert rates == sorted(rates, reverse=True)
    assert all(choice.measured.fits(topology.chip) for choice in found)
    tried = list(variants(config_of(rows=16), shape, topology, [16, 32]))
    assert len(found) < len(tried)
    for config in tried:
        sizes = config.mesh
        assert sizes.data * sizes.fsdp * sizes.tensor == 8
        assert config.train.batch_rows % config.train.accumulate == 0


def test_a_search_in_which_nothing_fits_says_so():
    with pytest.raises(UserError, match="Nothing that was tried fits"):
        search(
            config_of(),
            shape_of("llama-3-70b"),
            read_topology("h100:1"),
            LENGTHS,
            batches=[16],
            compiles=1,
            effort=-1.0,
        )


# ── what is refused ──


@pytest.mark.parametrize(
    "text", ["v9:2x2", "v5e", "h100:", "h100:0", "v5e:2×2", "0xv5e:2x2", "2xh100:8"]
)
def test_unknown_topologies_are_refused(text):
    with pytest.raises(UserError, match="--topology"):
        read_topology(text)


def test_slices_are_laid_along_data():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed (extra `plan`)")
    topology = read_topology("2xv5e:2x4")
    assert topology.count == 16
    mesh = make_mesh({"data": 2, "fsdp": -1, "tensor": 2}, topology.devices)
    assert mesh.shape == {"data": 2, "fsdp": 4, "tensor": 2}
    one = make_mesh({"data": 1, "fsdp": -1, "tensor": 2}, read_topology("v5e:2x4").devices)
    assert one.shape == {"data": 1, "fsdp": 4, "tensor": 2}  # its devices name no slice
    slices = [{d.slice_index for d in part.flat} for part in mesh.devices]
    assert slices == [{0}, {1}]
    with pytest.raises(UserError, match=r"config\.mesh\.data is 1; the devices are 2 TPU slices"):
        make_mesh({"data": 1, "fsdp": -1, "tensor": 1}, topology.devices)


def test_without_libtpu_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)  # as if it weren't installed
    with pytest.raises(UserError, match=r"pip install 'libtpu==.*\.\[plan\]"):
        read_topology("v5e:2x2")


def test_a_mesh_that_is_not_the_chips_is_refused():
    with pytest.raises(UserError, match="there are 8 devices"):
        abstract_mesh(config_of(fsdp=3), 8)


def test_rows_that_do_not_go_round_are_refused():
    config = config_of(rows=12, fsdp=8)
    with pytest.raises(UserError, match=r"12 rows.*8 chips"):
        abstract_batch(config, LENGTHS, abstract_mesh(config, 8), taught=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--topology is missing: KIND:SHAPE of the chips"),
        (("--topology=h100:8", "--mesh=fdsp=8"), "'fdsp=8'"),
        (("--topology=h100:8", "--mesh=fsdp=--8"), "'fsdp=--8' is not one of"),
        (("--topology=h100:8", "--mesh=fsdp=8", "--search", "--batches=²"), "'²' is no number"),
        (("--topology=h100:8", "--mesh=fsdp=4"), "there are 8 devices"),
        (("--topology=h100:8", "--mesh=fsdp=8", "--model=lama"), "llama-3-8b"),
        (("--topology=h100:8", "--mesh=fsdp=8", "--target_tokens=512"), "--row_tokens"),
        (("--topology=h100:8", "--mesh=fsdp=8", "--target_tokens=0"), "--target_tokens=0"),
        (("--topology=h100:8", "--mesh=fsdp=8", "--prefix_tokens=9000"), "context"),
    ],
)
def test_wrong_flags_end_in_one_message(arguments, said):
    done = run("--model=llama-3-8b", *arguments)
    assert done.returncode == 2
    assert said in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_table_for_gpus_says_that_it_is_an_estimate():
    done = run("--model=llama-3-8b", "--topology=h100:8", "--mesh=fsdp=8")
    assert done.returncode == 0, done.stderr
    assert "this is an estimate" in done.stdout and "(estimate)" in done.stdout
    assert re.search(r"weights +1\.870 +1\.870", done.stdout)


# ── the compiler itself ──


@pytest.mark.slow
def test_a_tiny_llama_compiled_for_a_tpu(tmp_path):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed (extra `plan`)")
    raw = {
        "model_type": "llama",
        "vocab_size": 512,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    }
    (tmp_path / "config.json").write_text(json.dumps(raw))
    done = run(
        f"--model={tmp_path}",
        "--topology=v5e:2x2",
        "--mesh=fsdp=2,tensor=2",
        "--prefix_tokens=64",
        "--row_tokens=64",
        "--target_tokens=16",
        "--query_tokens=32",
        "--largest=1",
    )
    assert done.returncode == 0, done.stderr
    lines = {re.split(r" {2,}", line.strip())[0]: line for line in done.stdout.splitlines()}
    assert re.findall("yes|NO", lines["fits"]) == ["yes"] * 4
    counts = re.findall(r"([\d.]+), [\d.]+", lines["all-gather"])
    assert float(counts[0]) >= 3 * 7  # seven matrices in each of three layers, at least
    assert "estimate)" not in lines["compile seconds"]
