"""A whole run: what it writes, how it resumes, and how it refuses."""

import dataclasses
import itertools
import json
import math
import re
import shutil
import time

import jax
import numpy as np
import pytest
import tiny

from pintern.adapters.adapter import Adapter, LoraPair
from pintern.assemble import fresh_adapter
from pintern.curriculum import AdaptiveState, Stage
from pintern.errors import UserError
from pintern.folders import LOCK
from pintern.training.checkpoint import Checkpoints, checkpoint_steps
from pintern.training.data import TrainingData
from pintern.training.loop import load_data, train
from pintern.training.probe import probe_score
from pintern.training.record import JsonLines, Recorder
from pintern.training.restore import restore_run
from pintern.training.stages import forget_later
from pintern.training.step import TrainState, make_optimizer
from pintern.training.workdir import check_base, claim, read_config


def contents(folder):
    """Every file's bytes."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def adapter_of(workdir) -> Adapter:
    return restore_run(workdir, read_config(workdir))[1]


def assert_same_bits(one: Adapter, two: Adapter):
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(two), strict=True
    ):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), jax.tree_util.keystr(path)


def test_a_run_writes_what_it_promises():
    run = tiny.trained_run()
    assert {p.name for p in run.iterdir()} == {
        "config.json",
        "base.json",
        "examples.json",
        "prompts",
        "checkpoints",
        "metrics.jsonl",
        "timings.jsonl",
        "tensorboard",
        LOCK,
    }
    rows = tiny.lines(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(8))
    assert [(row["keep_rate"], row["shots"]) for row in rows] == [(1.0, 1)] * 4 + [(0.0, 0)] * 4
    assert all(0 < row["loss"] < 20 and row["grad_norm"] > 0 for row in rows)
    prompts, data = tiny.parts().prompts, load_data(tiny.parts(), run, None)
    for step, row in enumerate(rows):
        starts = [data.rows(row["shots"])[i].start for i in data.indices(step)]
        in_front = len(prompts.prefix(row["keep_rate"])) + np.mean(starts)
        assert row["prompt_tokens"] == pytest.approx(in_front, abs=0.01)
    assert all(0 <= row["padding"] < 1 for row in rows)
    saved = sorted(int(p.name) for p in (run / "checkpoints").iterdir() if p.name.isdigit())
    assert saved == [6, 8]
    assert (run / "prompts" / "template-1.00.txt").read_text() == tiny.TEMPLATE


def test_programs_are_compiled_ahead_and_counted():
    rows = tiny.lines(tiny.trained_run() / "timings.jsonl")
    data = TrainingData(tiny.parts().prompts, batch_rows=4, accumulate=1, seed=0)
    levels = tiny.parts().prompts.curriculum.levels
    assert rows[-1]["compiled_programs"] == sum(len(data.programs(level)) for level in levels)
    assert rows[0]["compile_seconds"] > 0
    assert rows[0]["stall_seconds"] > 0
    assert all(a["stall_seconds"] <= b["stall_seconds"] for a, b in itertools.pairwise(rows))


def test_training_changes_the_adapter_and_learns():
    adapter = adapter_of(tiny.trained_run())
    assert all(np.abs(pair.b).max() > 0 for pair in adapter.lora.values())


def test_a_finished_run_is_left_as_it_is(tmp_path):
    run = tiny.copy_of(tiny.trained_run(), tmp_path / "run")
    before = contents(run)
    assert train(tiny.config(), run)
    after = contents(run)
    assert {p: b for p, b in after.items() if p in before} == before
    assert {p.parts[0] for p in after.keys() - before.keys()} <= {"tensorboard"}


def test_a_step_that_is_not_finite_is_named_and_the_last_checkpoint_goes_on(tmp_path, monkeypatch):
    run = tiny.copy_of(tiny.trained_run(), tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "8")
    sound = TrainingData.batch

    def poisoned(self, step, *rest):
        shape, batch, padding = sound(self, step, *rest)
        return shape, batch.replace(labelled=batch.labelled * np.float32("nan")), padding

    with monkeypatch.context() as patch:
        patch.setattr(TrainingData, "batch", lambda *a: (poisoned if a[1] == 7 else sound)(*a))
        with pytest.raises(UserError, match="loss at step 7 is nan") as raised:
            train(tiny.config(), run)
    data = TrainingData(tiny.parts().prompts, batch_rows=4, accumulate=1, seed=0)
    numbers = ", ".join(str(i + 1) for i in data.indices(7))
    assert f"training examples {numbers}." in str(raised.value)
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"6"}
    assert [row["step"] for row in tiny.lines(run / "metrics.jsonl")] == list(range(7))

    assert train(tiny.config(), run)
    whole = tiny.trained_run()
    assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert_same_bits(adapter_of(run), adapter_of(whole))


def test_weights_that_blow_up_are_in_no_checkpoint(tmp_path):
    config = tiny.config(train__learning_rate=1e20, train__warmup=0.0, checkpoint__every=1)
    with pytest.raises(UserError, match=r"loss at step \d+ is") as raised:
        train(config, tmp_path / "run")
    step = int(re.search(r"step (\d+)", str(raised.value))[1])
    kept = {int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert step not in kept
    assert [row["step"] for row in tiny.lines(tmp_path / "run" / "metrics.jsonl")] == [*range(step)]


def test_no_stage_is_kept_of_weights_that_blew_up_before_its_end(tmp_path):
    """Metrics that nobody has looked at yet are looked at first."""
    config = tiny.config(
        train__learning_rate=3e38,
        train__warmup=0.0,
        train__log_every=100,
        checkpoint__every=100,
        checkpoint__stages=True,
    )
    with pytest.raises(UserError, match=r"loss at step \d is"):
        train(config, tmp_path / "run")
    assert checkpoint_steps(tmp_path / "run" / "stages") == []


@pytest.mark.parametrize(("changed", "teacher"), [(False, [6]), (True, [])])
def test_what_was_kept_beyond_the_step_of_a_resumption_is_forgotten(tmp_path, changed, teacher):
    """A teacher too, and its answers, if the run would come by another one; and the scores of
    checkpoints that are made anew.
    """
    evaluations = ["4", "6", "6-tau1-shots1", "adapter-peft-0a1b2c", "base"]
    stages = ("stages/2", "stages/4", "stages/6")
    for name in (*stages, "teacher/6", *(f"eval/{name}" for name in evaluations)):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "teacher.jsonl").touch()
    forget_later(tmp_path, 4, changed=changed)
    assert checkpoint_steps(tmp_path / "stages") == [2, 4]
    assert checkpoint_steps(tmp_path / "teacher") == teacher
    assert (tmp_path / "teacher.jsonl").exists() == bool(teacher)
    left = [name for name in evaluations if not (changed and name.startswith("6"))]
    assert sorted(path.name for path in (tmp_path / "eval").iterdir()) == left


def test_a_probe_of_several_processes_has_the_first_ones_score(monkeypatch):
    """One that isn't first generates too, and is told: its own programs may not end in time."""
    parts = tiny.parts()
    alone = probe_score(parts, fresh_adapter(parts), parts.prompts.curriculum.levels[0])
    assert 0 <= alone <= 100
    monkeypatch.setattr("pintern.training.probe.from_first", lambda _: 41.5)
    assert probe_score(parts, fresh_adapter(parts), parts.prompts.curriculum.levels[0]) == 41.5


def test_too_few_rows_to_pack_are_told(monkeypatch):
    monkeypatch.setattr("pintern.training.data.packing", lambda *_, rows: 2)

    def data(**options) -> TrainingData:
        return TrainingData(tiny.parts().prompts, batch_rows=8, seed=0, **options)

    assert data(accumulate=8).unpacked
    assert not data(accumulate=1).unpacked and not data(accumulate=8, pack=False).unpacked


def test_another_config_is_refused_and_nothing_is_touched(tmp_path):
    run = tiny.copy_of(tiny.trained_run(), tmp_path / "run")
    before = contents(run)
    with pytest.raises(UserError, match=r"train\.learning_rate: 0\.002 → 0\.5"):
        train(tiny.config(train__learning_rate=0.5), run)
    assert contents(run) == before


def test_another_base_is_refused(tmp_path):
    run = tiny.copy_of(tiny.trained_run(), tmp_path / "run")
    config = tiny.config()
    config.model.path = str(shutil.copytree(tiny.base(), tmp_path / "base"))
    text = (run / "config.json").read_text()
    (run / "config.json").write_text(text.replace(str(tiny.base()), config.model.path))
    assert train(config, run)  # the same weights at another place are the same base
    shutil.copy(tiny.base(seed=1) / "model.safetensors", tmp_path / "base")
    before = contents(run / "checkpoints")
    with pytest.raises(UserError, match="trained on another base"):
        train(config, run)
    assert contents(run / "checkpoints") == before


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not empty and holds no run"):
        train(tiny.config(), tmp_path)
    assert contents(tmp_path).keys() == {(tmp_path / "thesis.txt").relative_to(tmp_path)}
    with pytest.raises(UserError, match="is a file"):
        train(tiny.config(), tmp_path / "thesis.txt")


@pytest.mark.parametrize("distill", [0.0, 1.0])
def test_a_prompt_longer_than_the_context_names_example_and_length(tmp_path, distill):
    """Without distillation the first level doesn't fit; with it, the teacher alone doesn't."""
    config = tiny.config(model__path=str(tiny.base(context=64)), distill__weight=distill)
    if distill:
        config.curriculum.stages = 1
    with pytest.raises(UserError) as raised:
        train(config, tmp_path / "run")
    where = "in the teacher's prompt" if distill else "at τ=1 with 1 shots"
    assert re.match(rf"Training example \d+ {where} is", str(raised.value))
    data = TrainingData(tiny.parts().prompts, batch_rows=4, accumulate=1, seed=0, teacher_shots=2)
    level = tiny.parts().prompts.curriculum.levels[0]
    prefix = len(tiny.parts().prompts.prefix(1.0))
    shots = config.distill.shots if distill else level.shots
    row = max(len(row.tokens) for row in data.rows(shots))
    assert f"{prefix + row} tokens long ({prefix} of prefix, {row} of row)" in str(raised.value)
    assert "context is 64" in str(raised.value)
    # The folder isn't the failed run's: the mended config may have it.
    config.prompt.max_shots = 0
    config.train.steps, config.distill.weight = 2, 0.0
    config.curriculum.update(schedule="explicit", stages=4, keep_rates=(0.0,), shots=(0,))
    assert train(config, tmp_path / "run")


def test_an_adaptive_run_has_room_for_what_its_probes_generate(tmp_path):
    config = tiny.config(curriculum__schedule="adaptive", eval__max_new_tokens=100_000)
    with pytest.raises(
        UserError, match=r"Training example \d+ at τ=1 with 1 shots is 100\d{3} tokens"
    ):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "base.json").exists()


def pair(rank: int = 2) -> LoraPair:
    return LoraPair(np.ones((2, 3, rank), np.float32), np.full((2, rank, 3), 2.0, np.float32))


def state_of(**changes):
    adapter = Adapter(
        lora={"mlp.up": pair()}, soft_prompt=np.arange(6, dtype=np.float32).reshape(2, 3)
    ).replace(**changes)
    return TrainState(adapter, make_optimizer(tiny.config().train).init(adapter))


@pytest.mark.parametrize("changes", [{}, {"soft_prompt": None}, {"lora": {}}])
def test_a_checkpoint_reads_back_what_was_saved(tmp_path, changes):
    state = state_of(**changes)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, state, AdaptiveState(1, 2))
    checkpoints.save(3, state, AdaptiveState(1, 2))
    step, found, curriculum = checkpoints.restore(jax.tree.map(np.zeros_like, state))
    checkpoints.close()
    assert (step, curriculum) == (3, AdaptiveState(1, 2))
    assert jax.tree.structure(found) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_checkpoint_that_is_absent_or_does_not_fit_is_told(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(UserError, match="holds no checkpoint; train first"):
        checkpoints.restore(state_of())
    checkpoints.save(3, state_of(), AdaptiveState())
    with pytest.raises(UserError, match=r"no checkpoint of step 9\. There are: 3"):
        checkpoints.restore(state_of(), 9)
    with pytest.raises(UserError, match="has shape"):
        checkpoints.restore(state_of(lora={"mlp.up": pair(rank=4)}))
    checkpoints.close()


@pytest.mark.parametrize("damaged", ["_METADATA", "manifest.ocdbt", "d/*"])
def test_a_damaged_checkpoint_is_told_from_one_that_does_not_fit(tmp_path, damaged):
    folder = tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder)
    for step in (3, 6):
        checkpoints.save(step, state_of(), AdaptiveState())
    with pytest.raises(UserError, match=r"6 in .* has other parts than the config makes"):
        checkpoints.restore(state_of(soft_prompt=None))
    for step, mend in ((6, "Remove the folder 6, and the run goes on from step 3"), (3, "a copy")):
        for path in (folder / str(step) / "state").glob(damaged):
            path.write_bytes(path.read_bytes()[:9])
        with pytest.raises(UserError, match=f"Checkpoint {step} in .* is damaged: .*{mend}"):
            checkpoints.restore(state_of())
        checkpoints.discard(step)
    checkpoints.close()


def test_a_reader_leaves_a_half_written_checkpoint_to_its_writer(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, state_of(), AdaptiveState())
    checkpoints.close()
    half = tmp_path / "6.orbax-checkpoint-tmp"
    half.mkdir()
    Checkpoints(tmp_path, writes=False).close()
    assert half.exists()


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": i}) + "\n" for i in range(5)) + '{"step": 5, "lo')
    file = JsonLines(path, before=4)
    file.write(step=4, loss=1.5)
    file.close()
    assert [row["step"] for row in tiny.lines(path)] == [0, 1, 2, 3, 4]
    assert tiny.lines(path)[-1]["loss"] == 1.5


def test_a_step_without_labelled_pairs_is_told_by_its_kl(tmp_path):
    """Its loss over none of them is 0, and looks like one that has learned everything."""
    recorder, told = Recorder(tmp_path, first_step=0, since=time.perf_counter()), []
    for kl in ({}, {"kl": 0.25}):
        for loss in (0.0, 1.5):
            recorder.write({"step": len(told), "loss": loss, "tokens": 8, **kl})
            told.append(recorder.told)
    assert told == ["loss=0.000", "loss=1.500", "kl=0.250", "loss=1.500"]


@pytest.mark.parametrize("damaged", [b'{"step": 1, "lo', b"5", b"[1]", b'{"loss": 1.5}', b"\xff"])
def test_a_damaged_line_is_told_and_what_is_behind_it_stays(tmp_path, damaged):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n' + damaged + b'\n{"step": 2}\n')
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2 is damaged"):
        JsonLines(path, before=3)
    assert path.read_bytes() == before
    path.write_bytes(b'{"step": 0}\n' + damaged)
    JsonLines(path, before=3).close()
    assert path.read_bytes() == b'{"step": 0}\n'


def test_packing_can_be_switched_off(monkeypatch):
    monkeypatch.setattr("pintern.training.data.packing", lambda *_, **__: 4)
    for pack, packed in ((True, 4), (False, 1)):
        parts = dataclasses.replace(tiny.parts(), config=tiny.config(train__pack=pack))
        data = load_data(parts, None, None)
        assert {data.packed(level) for level in data.levels} == {packed}


def test_a_folder_is_claimed_once(tmp_path):
    run = tmp_path / "run"
    assert not claim(run, tiny.config(seed=1))
    assert not claim(run, tiny.config())  # nothing is trained yet: a mistake may be mended
    check_base(run, tiny.parts().checkpoint)
    assert claim(run, tiny.config())
    assert read_config(run) == tiny.config()
    with pytest.raises(UserError, match="seed: 0 → 1"):
        claim(run, tiny.config(seed=1))
    with pytest.raises(UserError, match="holds no run"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[1]", "holds a JSON list"),
        (b"{}", "has no 'model'"),
        (b'{"model_type": "llama", "vocab_size": 7}', "has no 'model'"),
        (b'{"model": {}, "task": 1, "train": {"epochs": 2}}', "task is 1; it is a group"),
        (b'{"model": {}, "task": {}, "train": {"epochs": 2}}', "train.epochs is not a field"),
    ],
)
def test_a_config_that_is_none_of_ours_is_left_alone(tmp_path, held, said):
    """A model's folder has a config.json too."""
    (tmp_path / "config.json").write_bytes(held)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    for refused in (
        lambda: claim(tmp_path, tiny.config()),
        lambda: train(tiny.config(), tmp_path),
        lambda: read_config(tmp_path),
    ):
        with pytest.raises(UserError, match=said):
            refused()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "config.json": held,
        "model.safetensors": b"weights",
    }


@pytest.mark.parametrize("packed", [1, 4])
@pytest.mark.parametrize("smoothing", [0.0, 1.0])
@pytest.mark.parametrize("adaptive", [False, True])
def test_data_of_a_level_always_fits_its_programs(packed, smoothing, adaptive, monkeypatch):
    prompts = tiny.parts().prompts
    curriculum = dataclasses.replace(
        prompts.curriculum,
        stages=tuple(
            Stage(level, 12 * i, 12 * i + 12) for i, level in enumerate(prompts.curriculum.levels)
        ),
        smoothing=smoothing,
        adaptive=adaptive,
    )
    data = TrainingData(
        dataclasses.replace(prompts, curriculum=curriculum),
        batch_rows=4,
        accumulate=2,
        seed=0,
        teacher_shots=1,
    )
    monkeypatch.setattr("pintern.training.data.packing", lambda *_, **__: packed)
    assert {data.packed(level) for level in data.levels} == {math.gcd(packed, 2)}
    for level in curriculum.levels:
        known = {
            shape: [np.shape(x) for x in jax.tree.leaves(batch)]
            for shape, batch in data.programs(level)
        }
        for step in range(24):
            state = AdaptiveState(curriculum.levels.index(level), 0) if adaptive else None
            if curriculum.level_at(step, state) != level:
                continue
            shape, batch, padding = data.batch(step, level, state)
            assert known[shape] == [np.shape(x) for x in jax.tree.leaves(batch)]
            assert 0 <= padding < 1
