"""A mesh of eight virtual devices: the step of one, and nothing gathered that needn't be."""

import importlib.util
import subprocess
import sys

import pytest
import tiny
from jax.experimental import topologies

from pintern.errors import UserError
from pintern.models.sharding import make_mesh


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_every_mesh_of_eight_devices_makes_the_step_of_one(family):
    """Loss and adapter after two steps of two micro-batches behind a shared prefix; also of a
    population; the script says what it compares and what the programs may not gather.
    """
    run = subprocess.run(
        [sys.executable, "tests/on_eight_devices.py", family],
        cwd=tiny.REPOSITORY,
        env=tiny.environment() | {"PYTHONPATH": str(tiny.REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    assert run.stdout.count("equal") == 12, run.stdout


@pytest.mark.parametrize(
    "sizes, said",
    [
        ({"data": 3, "fsdp": 1, "tensor": 1}, "data=3, fsdp=1, tensor=1; there are 1 devices"),
        ({"data": -1, "fsdp": -1, "tensor": 1}, "one of them may be -1"),
        ({"data": -1, "fsdp": 2, "tensor": 1}, "must multiply"),
    ],
)
def test_a_mesh_of_another_number_of_devices_is_refused(sizes, said):
    with pytest.raises(UserError, match=said):
        make_mesh(sizes)


def test_rest_of_the_devices():
    assert dict(make_mesh({"data": 1, "fsdp": -1, "tensor": 1}).shape) == {
        "data": 1,
        "fsdp": 1,
        "tensor": 1,
    }


def test_slices_lie_along_data(monkeypatch):
    """Devices of two real TPU slices, described by libtpu."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed (extra `plan`)")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    devices = topologies.get_topology_desc(
        platform="tpu", topology_name="v5e:2x2", num_slices=2
    ).devices
    mesh = make_mesh({"data": 2, "fsdp": 4, "tensor": 1}, devices)
    for slice_index, row in enumerate(mesh.devices):
        assert {device.slice_index for device in row.flat} == {slice_index}
    with pytest.raises(UserError, match="the devices are 2 TPU slices"):
        make_mesh({"data": 1, "fsdp": 8, "tensor": 1}, devices)
