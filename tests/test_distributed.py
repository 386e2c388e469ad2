"""The environment alone says whether there are several processes."""

import signal

import jax
import pytest

from pintern import distributed
from pintern.distributed import detect
from pintern.errors import UserError

STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node1", "SLURM_STEP_NUM_TASKS": "2"}


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, None),
        ({"PINTERN_NUM_PROCESSES": "2"}, "pintern"),
        (STEP, "slurm"),
        (STEP | {"SLURM_STEP_NUM_TASKS": "1"}, None),
        # An sbatch script's own shell: a job of two tasks, but no step.
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, None),
        (STEP | {"PINTERN_NUM_PROCESSES": "4"}, "pintern"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "openmpi"),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "tpu"),
        ({"TPU_WORKER_HOSTNAMES": "a"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, "tpu"),
    ],
)
def test_who_says_that_there_are_several(environment, found):
    assert detect(environment) == found


def test_a_host_with_chips_asks_unless_told_not_to():
    assert detect({}, tpu_chips=True) == "tpu_vm"
    assert detect({"TPU_WORKER_HOSTNAMES": "localhost"}, tpu_chips=True) is None
    assert detect({"TPU_SKIP_MDS_QUERY": "1"}, tpu_chips=True) is None


def test_a_plain_host_stays_alone(monkeypatch):
    for name in ("PINTERN_NUM_PROCESSES", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    distributed.initialize()
    assert not jax.distributed.is_initialized()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"PINTERN_PROCESS_ID": ""}, "PINTERN_PROCESS_ID not"),
        ({"PINTERN_PROCESS_ID": "2"}, "PINTERN_PROCESS_ID=2 is not one of"),
        ({"PINTERN_NUM_PROCESSES": "two"}, "'two' in the environment is no whole number"),
        ({"JAX_COORDINATOR_ADDRESS": ""}, "JAX_COORDINATOR_ADDRESS not"),
    ],
)
def test_variables_that_contradict_each_other_are_named(monkeypatch, changes, message):
    good = {
        "JAX_COORDINATOR_ADDRESS": "127.0.0.1:1",
        "PINTERN_NUM_PROCESSES": "2",
        "PINTERN_PROCESS_ID": "1",
    }
    for name, value in (good | changes).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        distributed.initialize()


def test_a_signal_ends_a_process_that_connects_and_is_heard_again_behind(monkeypatch):
    seen = []
    monkeypatch.setenv("PINTERN_NUM_PROCESSES", "1")
    monkeypatch.setenv("PINTERN_PROCESS_ID", "0")
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(jax.config, "update", lambda *_: None)

    def connect(**_):
        seen.append(signal.getsignal(signal.SIGTERM))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as JAX does, of its own

    monkeypatch.setattr(jax.distributed, "initialize", connect)
    before = signal.signal(signal.SIGTERM, heard := lambda *_: None)
    try:
        distributed.initialize()
        assert seen == [signal.SIG_DFL]
        assert signal.getsignal(signal.SIGTERM) is heard
    finally:
        signal.signal(signal.SIGTERM, before)
