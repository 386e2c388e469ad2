"""Checkpoints: written beside training, told when they can't be, and never there by half."""

import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from pintern.adapters.adapter import Adapter, LoraPair
from pintern.curriculum import AdaptiveState
from pintern.errors import UserError
from pintern.training.checkpoint import Checkpoints, checkpoint_steps, remove_checkpoint
from pintern.training.loop import train
from pintern.training.step import TrainState, make_optimizer


def state_of(size: int = 3, fill: float = 1.0) -> TrainState:
    """A state whose bytes grow with `size`; random, so that no compression makes it small."""
    a, b = jax.random.normal(jax.random.key(0), (2, 2, size, 64)) + fill
    adapter = Adapter(lora={"mlp.up": LoraPair(a, jnp.swapaxes(b, 1, 2))})
    return TrainState(adapter, make_optimizer(tiny.config().train).init(adapter))


def bits(state: TrainState) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of a megabyte of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system may be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(folder, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)


def test_what_is_written_is_the_state_at_the_save_though_training_goes_on(tmp_path):
    state = jax.tree.map(jnp.array, state_of(size=2000))
    wanted = bits(state)
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 7, tree), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, AdaptiveState(1, 1))
        later = overwrite(state)  # it has the buffers now, while the save may still be at work
        jax.block_until_ready(later)
        checkpoints.save(2, later, AdaptiveState())
    for step, expected in ((1, wanted), (2, bits(later))):
        found = Checkpoints(tmp_path, writes=False).restore(state_of(size=2000), step)
        assert bits(found[1]) == expected


def test_the_latest_are_kept_and_one_more_until_the_next_is_begun(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state_of(), AdaptiveState())
        assert checkpoints.steps == [2, 3]
        checkpoints.discard(3)  # its loss was not finite
        assert checkpoints.latest == 2
    assert checkpoint_steps(tmp_path) == [2]


def test_what_a_kill_left_half_written_or_half_removed_counts_for_nothing(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state_of(), AdaptiveState())
    shutil.copytree(tmp_path / "3", tmp_path / "6.orbax-checkpoint-tmp")
    shutil.copytree(tmp_path / "3", tmp_path / "2.removed")
    shutil.rmtree(tmp_path / "2.removed" / "state")
    (tmp_path / "notes.txt").write_text("a person's")
    assert Checkpoints(tmp_path, writes=False).steps == [3]
    assert (tmp_path / "2.removed").exists()
    assert Checkpoints(tmp_path).latest == 3
    assert {path.name for path in tmp_path.iterdir()} == {"3", "notes.txt"}
    remove_checkpoint(tmp_path, 4)
    remove_checkpoint(tmp_path, 3)
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt"}


@pytest.mark.parametrize("told_by", ["the next save", "the end", "a look at what is there"])
def test_a_full_disk_is_told_and_the_last_checkpoint_stays(small_disk, told_by):
    folder = small_disk / "checkpoints"
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, state_of(), AdaptiveState())
    with pytest.raises(UserError) as raised:
        checkpoints.save(2, state_of(size=4000), AdaptiveState())  # 3 MB
        if told_by == "the next save":
            checkpoints.save(3, state_of(), AdaptiveState())
        elif told_by == "the end":
            checkpoints.close()
        else:
            assert not checkpoints.steps
    assert re.match(r"Checkpoint 2 could not be written to .*No space left", str(raised.value))
    assert "Whole are: 1." in str(raised.value)
    checkpoints.close()
    assert {path.name for path in folder.iterdir()} == {"1"}  # its rest takes no room
    assert bits(Checkpoints(folder, writes=False).restore(state_of())[1]) == bits(state_of())


def test_an_error_of_the_run_itself_is_not_covered_by_one_of_writing(small_disk, capsys):
    with (
        pytest.raises(UserError, match="the loss is nan"),
        Checkpoints(small_disk / "checkpoints") as checkpoints,
    ):
        checkpoints.save(2, state_of(size=4000), AdaptiveState())
        raise UserError("the loss is nan")
    assert "Checkpoint 2 could not be written" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["full", "read-only"])
def test_a_run_on_such_a_disk_ends_with_a_message_and_goes_on_afterwards(small_disk, what):
    whole, run = tiny.trained_run(), small_disk / "run"
    shutil.copytree(whole, run)
    remove_checkpoint(run / "checkpoints", 8)
    if what == "full":
        (small_disk / "other").write_bytes(bytes(2**19))
        with pytest.raises(OSError, match="No space"), (small_disk / "rest").open("wb") as file:
            while True:
                file.write(bytes(512))
                file.flush()
    else:
        remount(small_disk, "ro")
    with pytest.raises(UserError) as raised:
        train(tiny.config(), run)
    reason = {"full": "No space left on device", "read-only": "Read-only file system"}[what]
    assert reason in str(raised.value)
    assert "run the same command again" in str(raised.value)
    assert checkpoint_steps(run / "checkpoints") == [6]
    if what == "full":
        for name in ("other", "rest"):
            (small_disk / name).unlink()
        remount(small_disk, "size=8m")
    else:
        remount(small_disk, "rw,size=8m")
    assert train(tiny.config(), run)
    assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_by_the_clock_it_saves_more_often_and_comes_to_the_same(tmp_path):
    whole = tiny.trained_run()
    often, seldom = tmp_path / "often", tmp_path / "seldom"
    fields = {"checkpoint__every": 100, "checkpoint__keep": 99}
    assert train(tiny.config(**fields, checkpoint__minutes=1e-9, train__log_every=2), often)
    assert checkpoint_steps(often / "checkpoints") == [2, 4, 6, 8]
    assert train(tiny.config(**fields, checkpoint__minutes=1e9), seldom)
    assert checkpoint_steps(seldom / "checkpoints") == [8]
    template = _template()
    wanted = bits(Checkpoints(whole / "checkpoints", writes=False).restore(template, 8)[1])
    for run in (often, seldom):
        assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
        found = Checkpoints(run / "checkpoints", writes=False).restore(template, 8)[1]
        assert bits(found) == wanted


def _template() -> TrainState:
    from pintern.assemble import fresh_adapter

    adapter = fresh_adapter(tiny.parts())
    return TrainState(adapter, make_optimizer(tiny.config().train).init(adapter))


# Two processes: what one of them writes both have, and that it can't be written both are told.
IN_TWO = """
import sys
from pathlib import Path
from pintern import distributed
distributed.initialize()
import jax
import numpy as np
from pintern.adapters.adapter import Adapter, LoraPair
from pintern.config import default_config
from pintern.curriculum import AdaptiveState
from pintern.errors import report_user_errors
from pintern.training.checkpoint import Checkpoints
from pintern.training.step import TrainState, make_optimizer

def state_of(a):
    adapter = Adapter(lora={"mlp.up": LoraPair(a, a.swapaxes(1, 2))})
    return TrainState(adapter, make_optimizer(default_config().train).init(adapter))

def main(folder):
    me, drawn = jax.process_index(), np.random.default_rng(0)
    state = state_of(jax.numpy.full((2, 3, 64), -0.0 if me == 0 else 7.0))
    with Checkpoints(Path(folder) / f"process-{me}") as checkpoints:
        checkpoints.save(1, state, AdaptiveState(1, 2))
        _, found, curriculum = checkpoints.restore(state)
        for matrix in jax.tree.leaves(found.adapter):
            assert not matrix.any() and np.signbit(matrix).all(), "bits of the first one's"
        assert curriculum == AdaptiveState(1, 2)
        large = drawn.standard_normal((2, 8000, 64), np.float32)
        checkpoints.save(2, state_of(jax.numpy.asarray(large)), AdaptiveState())

report_user_errors(main)(sys.argv[1])
"""


@pytest.mark.slow
def test_two_processes_have_what_the_first_writes_and_are_told_what_it_can_not(small_disk):
    launched = ("-m", "launch.local", "--processes=2", "--", sys.executable, "-c", IN_TWO)
    code, _, err = tiny.run(*launched, str(small_disk))
    assert code != 0
    assert "Traceback" not in err, err
    for number in (0, 1):
        told = [line for line in err.splitlines() if line.startswith(f"[{number}] error:")]
        assert len(told) == 1, err
        assert re.search(r"Checkpoint 2 could not be written to .*No space left", told[0])
    assert [path.name for path in small_disk.iterdir()] == ["process-0"]
