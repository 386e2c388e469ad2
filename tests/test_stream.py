"""Loading streams: straight into shardings and int8, with the memory that is promised."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_models import EVERY_FAMILY

from pintern.models.layout import parameters_by_path
from pintern.models.load import init_model, load_model, save_model
from pintern.models.quantize import quantize

REPOSITORY = Path(__file__).parents[1]
ON_EIGHT_DEVICES = """
import sys
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 8)
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from pintern.models.layout import parameters_by_path
from pintern.models.load import load_model

mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)

def sharding_of(path, shape):
    # Every last axis that divides, and the one before it: stacks, vectors, tables and scales.
    axes = [None] * len(shape)
    if shape[-1] % 4 == 0:
        axes[-1] = "fsdp"
    if len(shape) > 1 and shape[-2] % 2 == 0:
        axes[-2] = "tensor"
    return NamedSharding(mesh, PartitionSpec(*axes))

for quantized in (False, True):
    whole = parameters_by_path(load_model(sys.argv[1], quantized=quantized).decoder)
    loaded = load_model(sys.argv[1], quantized=quantized, sharding_of=sharding_of)
    pieces = parameters_by_path(loaded.decoder)
    split = 0
    for path, array in pieces.items():
        assert array.sharding.is_equivalent_to(sharding_of(path, array.shape), array.ndim), path
        np.testing.assert_array_equal(array, whole[path], err_msg=path)
        split += array.addressable_shards[0].data.nbytes < array.nbytes
    assert split > 5, split
print("equal")
"""


def saved(family: str, directory: Path) -> Path:
    made = init_model(EVERY_FAMILY[family], seed=3)
    save_model(directory, made.decoder, made.family, made.raw_config, dtype="float32")
    return directory


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_int8_while_loading_is_int8_afterwards(family, tmp_path):
    directory = saved(family, tmp_path)
    after, at_once = load_model(directory), load_model(directory, quantized=True)
    quantize(after.decoder)
    wanted, found = (parameters_by_path(one.decoder) for one in (after, at_once))
    assert wanted.keys() == found.keys()
    for path, array in wanted.items():
        assert found[path].dtype == array.dtype, path
        np.testing.assert_array_equal(found[path], array, err_msg=path)
    assert jax.tree.structure(after.decoder) == jax.tree.structure(at_once.decoder)
    assert after.fingerprint == at_once.fingerprint


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_each_device_gets_its_piece(family, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", ON_EIGHT_DEVICES, str(saved(family, tmp_path))],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "equal", done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the high-water mark from /proc")
def test_the_host_holds_a_shard_and_a_layer_at_most():
    """The benchmark exits with 1 where its bound doesn't hold."""
    command = [sys.executable, "-m", "benchmarks.loading", "--width=1024", "--layers=16"]
    done = subprocess.run([*command, "--shards=3"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 5
