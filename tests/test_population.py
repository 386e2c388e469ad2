"""A population: every member as if it had trained alone, whatever becomes of the others."""

import functools
import json
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_models
from flax import nnx

from pintern.adapters.adapter import Adapter, init_lora
from pintern.assemble import split_decoder
from pintern.errors import UserError
from pintern.models.load import init_model
from pintern.models.shared_prefix import Batch
from pintern.training.data import TrainingData
from pintern.training.loop import train
from pintern.training.members import common_step, outcome_of, same_population, saved_steps
from pintern.training.population import train_population
from pintern.training.restore import restore_run
from pintern.training.stacking import (
    PopulationData,
    make_population_step,
    rates_of,
    stack,
    unstack,
)
from pintern.training.step import TrainBatch, TrainState, loss_options, make_optimizer, make_step
from pintern.training.variation import members_of
from pintern.training.workdir import read_config

# A learning rate that ends in NaN. With smaller ones a norm's square may overflow alone, which on
# some CPUs gives zeros.
OVERFLOW = 3e38
# What members may differ in, and data that are not of one width: the seed draws retrieved examples.
MEMBERS = (
    {"seed": 0, "train__learning_rate": 2e-3},
    {"seed": 1, "train__learning_rate": 2e-3, "adapter__soft_prompt_init": "uniform"},
    {"seed": 1, "train__learning_rate": 5e-3, "train__weight_decay": 0.1, "train__clip": 0.3},
)
SETTING = {
    "adapter__targets": ("attention.query",),
    "adapter__soft_prompt": 3,
    "adapter__dropout": 0.1,
    "prompt__retriever": "random",
}


def configs_of(members=MEMBERS, **changes):
    return [tiny.config(**SETTING, **changes, **member) for member in members]


def folders(root, count=3):
    return [root / f"member-{i}" for i in range(count)]


@functools.cache
def trained():
    """Folder of a population that ran to its end, and what became of its members."""
    root = tiny.root() / "population"
    return root, train_population(configs_of(), folders(root))


def adapter_of(workdir) -> Adapter:
    return restore_run(workdir, read_config(workdir))[1]


def bits(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def assert_close(found, expected, rel=1e-5):
    """Each array within `rel` of the largest entry of what is expected."""
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.abs(a - b).max() <= rel * np.abs(b).max(), jax.tree_util.keystr(path)


# ── the step ──


def random_batch(rng, *, rows, slots, prefix, micro=1) -> TrainBatch:
    """Rows of random tokens; the last one is a slot shorter, and has a target less."""
    shape = (micro, 1, rows, slots)
    valid = np.ones(shape, np.int32)
    valid[:, :, -1, -1] = 0
    weights = np.ones((micro, 1, rows, 3), np.float32)
    weights[:, :, -1, -1] = 0
    tokens = rng.integers(0, tiny_models.VOCAB, shape, dtype=np.int32)
    at = np.broadcast_to(np.arange(slots - 4, slots - 1, dtype=np.int32), weights.shape).copy()
    at[weights == 0] = 0
    student = Batch(
        prefix_tokens=rng.integers(0, tiny_models.VOCAB, (micro, 1, prefix), dtype=np.int32),
        prefix_valid=np.ones((micro, 1, prefix), np.int32),
        pack_tokens=tokens,
        pack_rows=valid,
        target_rows=np.zeros_like(at),
        target_slots=at,
        target_tokens=rng.integers(0, tiny_models.VOCAB, weights.shape, dtype=np.int32),
        target_weights=weights,
    )
    return TrainBatch(student, labelled=np.ones((micro, 1, rows), np.float32))


def padded(batch: TrainBatch, *, prefix: int, slots: int, targets: int) -> TrainBatch:
    """Zeros on the right, as a population pads."""
    wanted = dict.fromkeys(("prefix_tokens", "prefix_valid"), prefix)
    wanted |= dict.fromkeys(("pack_tokens", "pack_rows"), slots)
    wanted |= dict.fromkeys(
        ("target_rows", "target_slots", "target_tokens", "target_weights"), targets
    )
    student = {}
    for name, length in wanted.items():
        leaf = getattr(batch.student, name)
        student[name] = np.pad(leaf, [(0, 0)] * (leaf.ndim - 1) + [(0, length - leaf.shape[-1])])
    return batch.replace(student=Batch(**student))


def test_members_whose_rows_pack_differently_are_packed_alike(monkeypatch):
    prompts = tiny.parts().prompts
    members = [TrainingData(prompts, batch_rows=8, accumulate=2, seed=seed) for seed in (0, 1)]
    wanted = dict(zip(map(id, members), (8, 2), strict=True))
    monkeypatch.setattr(TrainingData, "_dealt", lambda self, shots: wanted[id(self)])
    level = members[0].levels[0]
    assert [data.packed(level) for data in members] == [4, 2]
    data = PopulationData(members)
    assert [data.packed(level) for data in members] == [2, 2]
    batch, each = data.batch(0, level)
    assert batch.student.packed == 2
    for member, found in zip(members, each, strict=True):
        _, alone, _ = member.batch(0, level)
        assert found.student.real_tokens == alone.student.real_tokens


KINDS = {
    "llama, both, dropout, accumulation": ("llama", True, 2, 0.2, 2),
    "gpt2, soft prompt": ("gpt2", False, 2, 0.0, 1),
    "mixtral, lora": ("mixtral", True, 0, 0.0, 1),
}


class Steps:
    """Two members of one family: the step of both, and of one alone."""

    def __init__(self, kind: str):
        family, lora, virtual, dropout, micro = KINDS[kind]
        self.graph, self.base = nnx.split(tiny_models.random_decoder(family))
        adapter = tiny_models.random_adapter(family, virtual=virtual, dropout=dropout)
        adapter = adapter if lora else adapter.replace(lora={})
        if dropout:  # each map's mask makes the program longer, and two show what all do
            pairs = {name: adapter.lora[name] for name in ("attention.query", "mlp.down")}
            adapter = adapter.replace(lora=pairs)
        self.configs = [tiny.config(**MEMBERS[0]), tiny.config(**MEMBERS[2])]
        self.adapters = [adapter, jax.tree.map(lambda x: 0.7 * x, adapter)]
        rng = np.random.default_rng(3)
        self.batches = [
            [random_batch(rng, rows=3, slots=s, prefix=p, micro=micro) for s, p in ((6, 4), (8, 5))]
            for _ in range(3)
        ]
        self.together = jax.jit(
            make_population_step(self.graph, self.configs[0], own_teachers=False)
        )

    def state(self, i: int) -> TrainState:
        return TrainState(
            self.adapters[i], make_optimizer(self.configs[i].train).init(self.adapters[i])
        )

    def keys(self, step: int) -> list[jax.Array]:
        return [jax.random.fold_in(jax.random.key(i), step) for i in range(2)]

    def both(self, **changed):
        """States and metrics after three steps; `changed` has other first states by number."""
        state = stack([changed.get(f"state_{i}", self.state(i)) for i in range(2)])
        metrics = []
        for step, batches in enumerate(self.batches):
            # One slot and one target more than the longest needs.
            batch = stack([padded(b, prefix=6, slots=9, targets=4) for b in batches])
            state, found = self.together(
                state, self.base, batch, None, jnp.stack(self.keys(step)), rates_of(self.configs)
            )
            metrics.append(found)
        return unstack(state, 2), metrics

    def alone(self, i: int):
        optimizer = make_optimizer(self.configs[i].train)
        step_of = jax.jit(make_step(self.graph, optimizer, **loss_options(self.configs[i])))
        state, metrics = self.state(i), []
        for step, batches in enumerate(self.batches):
            state, found = step_of(state, self.base, batches[i], None, self.keys(step)[i])
            metrics.append(found)
        return state, metrics


@functools.cache
def steps_of(kind: str) -> Steps:
    return Steps(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_members_step_as_they_would_alone(kind):
    """Whatever their widths; the other member's wider batch changes nothing."""
    steps = steps_of(kind)
    states, metrics = steps.both()
    for i in range(2):
        state, expected = steps.alone(i)
        assert_close(states[i], state)
        for together, apart in zip(metrics, expected, strict=True):
            assert set(together) == set(apart)
            for name in apart:
                assert float(together[name][i]) == pytest.approx(float(apart[name]), rel=1e-5)
        assert any(
            np.abs(a - b).max() > 1e-4
            for a, b in zip(
                jax.tree.leaves(state.adapter), jax.tree.leaves(steps.adapters[i]), strict=True
            )
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_member_of_nan_leaves_the_other_alone(kind):
    steps = steps_of(kind)
    sound = steps.both()
    lost = jax.tree.map(lambda x: x * np.float32("nan"), steps.adapters[1])
    states, metrics = steps.both(state_1=steps.state(1)._replace(adapter=lost))
    assert all(np.isnan(row["loss"][1]) for row in metrics)
    assert all(np.isfinite(row["loss"][0]) for row in metrics)
    if kind.startswith("mixtral"):
        # Its tokens meet the experts in another order, and sums are rounded by their place.
        assert_close(states[0], sound[0][0], rel=1e-6)
    else:
        assert bits(states[0]) == bits(sound[0][0])


def test_the_base_is_in_memory_once():
    """Per member: its state, its batch and its activations, far less than the base."""
    made = init_model(
        {
            "model_type": "llama",
            "vocab_size": 4000,
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
        0,
    )
    graph, base = split_decoder(made)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(base))
    config = tiny.config()
    modules = made.decoder.linear_modules()
    adapter = Adapter(init_lora(jax.random.key(0), modules, 2, rank=2))
    state = TrainState(adapter, make_optimizer(config.train).init(adapter))
    batch = random_batch(np.random.default_rng(0), rows=1, slots=8, prefix=4)
    keys = jax.random.key(0)
    found = {}
    for count in (2, 6):
        given = (stack([x] * count) for x in (state, batch, keys))
        states, batches, every = given
        program = make_population_step(graph, config, own_teachers=False)
        analysis = (
            jax.jit(program)
            .lower(states, base, batches, None, every, rates_of([config] * count))
            .compile()
            .memory_analysis()
        )
        found[count] = analysis
    own = sum(leaf.nbytes for leaf in jax.tree.leaves((state, batch)))
    arguments = found[6].argument_size_in_bytes - found[2].argument_size_in_bytes
    assert arguments == pytest.approx(4 * own, rel=0.05)
    assert found[2].argument_size_in_bytes > size
    temporary = found[6].temp_size_in_bytes - found[2].temp_size_in_bytes
    assert temporary / 4 < size / 10


# ── whole runs ──


def test_members_are_what_they_would_be_alone(tmp_path):
    root, outcomes = trained()
    assert [outcome.state for outcome in outcomes] == ["trained"] * 3
    for i, config in [*enumerate(configs_of())][::2]:
        assert train(config, tmp_path / f"alone-{i}")
        assert_close(adapter_of(folders(root)[i]), adapter_of(tmp_path / f"alone-{i}"))
        together, alone = (
            tiny.lines(path / "metrics.jsonl")
            for path in (folders(root)[i], tmp_path / f"alone-{i}")
        )
        for one, two in zip(together, alone, strict=True):
            assert one.keys() == two.keys()
            for name in one.keys() - {"padding"}:
                assert one[name] == pytest.approx(two[name], rel=1e-5), (i, one["step"], name)
        assert outcomes[i].loss == together[-1]["loss"]
    assert len({tuple(bits(adapter_of(path))) for path in folders(root)}) == 3


@pytest.mark.slow
def test_a_member_is_an_ordinary_run(tmp_path):
    """Anything that reads a run reads it; trained alone it is found complete."""
    root, _ = trained()
    member = tiny.copy_of(folders(root)[1], tmp_path / "member")
    names = {path.name for path in member.iterdir()}
    assert {path.name for path in tiny.trained_run().iterdir()} < names
    before = (member / "metrics.jsonl").read_bytes()
    assert train(read_config(member), member)
    assert (member / "metrics.jsonl").read_bytes() == before
    code, _, err = tiny.run("-m", "pintern.evaluate", f"--workdir={member}")
    assert code == 0, err
    assert (member / "eval" / "8" / "predictions.jsonl").exists()


def test_a_diverged_member_ends_and_the_others_go_on_to_the_same_bits(tmp_path, capsys):
    root, _ = trained()
    configs = configs_of((*MEMBERS[:2], {"seed": 5, "train__learning_rate": OVERFLOW}))
    outcomes = train_population(configs, folders(tmp_path))
    assert [outcome.state for outcome in outcomes] == ["trained", "trained", "diverged"]
    lost = outcomes[2]
    assert f"The loss at step {lost.step} is" in lost.message
    assert "training examples" in lost.message
    assert f"member-2 diverged: {lost.message}" in capsys.readouterr().err
    rows = tiny.lines(lost.workdir / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(lost.step))
    assert all(step < lost.step for step in saved_steps(lost.workdir))
    for kept, expected in zip(folders(tmp_path)[:2], folders(root)[:2], strict=True):
        assert bits(adapter_of(kept)) == bits(adapter_of(expected))
        lines = (path / "metrics.jsonl" for path in (kept, expected))
        assert len({path.read_bytes() for path in lines}) == 1

    # It stays as it is when a killed population goes on.
    for kept in folders(tmp_path)[:2]:
        shutil.rmtree(kept / "checkpoints" / "8")
    again = train_population(configs, folders(tmp_path))
    assert [outcome.state for outcome in again] == ["trained", "trained", "diverged"]
    assert again[2] == lost
    assert tiny.lines(lost.workdir / "metrics.jsonl") == rows
    for kept, expected in zip(folders(tmp_path)[:2], folders(root)[:2], strict=True):
        assert bits(adapter_of(kept)) == bits(adapter_of(expected))


def test_a_population_whose_members_all_diverge_ends(tmp_path):
    members = [{"seed": seed, "train__learning_rate": OVERFLOW} for seed in range(3)]
    outcomes = train_population(configs_of(members), folders(tmp_path))
    assert {outcome.state for outcome in outcomes} == {"diverged"}


@pytest.mark.slow
def test_a_killed_population_resumes_bit_for_bit(tmp_path):
    config = configs_of([{}])[0]
    path = tiny.config_file(tmp_path, config)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    flags = (
        *("-m", "pintern.population", f"--config={path}", "--config.train.steps=24"),
        *("--vary=seed=0,1", "--vary=train.learning_rate=2e-3,5e-3"),
    )
    config.train.steps = 24
    vary = {"seed": (0, 1), "train.learning_rate": (2e-3, 5e-3)}
    members = members_of(config, vary)
    names = [f"seed-{s}_learning_rate-{r}" for s in (0, 1) for r in ("0.002", "0.005")]
    assert list(members) == names
    train_population(list(members.values()), [whole / "members" / name for name in names])
    for lines, sent, code in [(6, signal.SIGKILL, -9), (12, signal.SIGTERM, 0)]:
        process = tiny.start(*flags, f"--workdir={killed}")
        metrics = killed / "members" / names[-1] / "metrics.jsonl"
        while process.poll() is None:
            if metrics.exists() and metrics.read_text().count("\n") >= lines:
                process.send_signal(sent)
                break
            time.sleep(0.002)
        out, err = process.communicate(timeout=300)
        assert process.returncode == code, (out, err)
        assert lines <= metrics.read_text().count("\n") < 24, "it was over before the signal came"
    assert "Stopped by a signal" in out
    # As if the kill had come between the members' saves.
    ahead = killed / "members" / names[0] / "checkpoints"
    shutil.rmtree(ahead / str(saved_steps(ahead.parent)[-1]))
    code, out, err = tiny.run(*flags, f"--workdir={killed}", "--evaluate")
    assert code == 0, err
    assert all(f"{name}  trained" in out for name in names)
    assert "train.learning_rate=0.005" in out
    for name in names:
        one, two = (root / "members" / name for root in (whole, killed))
        assert (one / "metrics.jsonl").read_bytes() == (two / "metrics.jsonl").read_bytes()
        assert bits(adapter_of(one)) == bits(adapter_of(two))
        scores = json.loads((two / "eval" / "24" / "scores.json").read_text())
        assert f"{scores['score']:.1f}" in next(x for x in out.splitlines() if x.startswith(name))


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["base", "first_stage"])
def test_distilled_members_are_what_they_would_be_alone(tmp_path, teacher):
    changes = {"distill__weight": 0.5, "distill__teacher": teacher, "distill__unlabelled": 4}
    changes |= {"adapter__targets": ("attention.query",), "train__reset_optimizer": True}
    configs = [tiny.config(seed=seed, **changes) for seed in (0, 1)]
    train_population(configs, folders(tmp_path, 2))
    for i, config in enumerate(configs):
        assert train(config, tmp_path / f"alone-{i}")
        one, two = folders(tmp_path, 2)[i], tmp_path / f"alone-{i}"
        assert (one / "teacher.jsonl").read_text() == (two / "teacher.jsonl").read_text()
        # Adam divides by |g| when its moments are fresh: the smallest gradients' rounding shows.
        # Without the reset, or with another teacher, it would be a step: 1e-2.
        assert_close(adapter_of(one), adapter_of(two), rel=1e-3)
        kl = [
            [row.get("kl", 0.0) for row in tiny.lines(path / "metrics.jsonl")]
            for path in (one, two)
        ]
        assert kl[0] == pytest.approx(kl[1], rel=1e-4)
        assert any(kl[0])


# ── which configs train together, and which folders ──


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"adapter__rank": 3}, "adapter.rank: 2 → 3"),
        ({"adapter__soft_prompt": 1}, "adapter.soft_prompt: 3 → 1"),
        ({"adapter__targets": ("all",)}, "adapter.targets"),
        ({"train__steps": 9}, "train.steps: 8 → 9"),
        ({"train__batch_rows": 8}, "train.batch_rows: 4 → 8"),
        ({"curriculum__stages": 3}, "curriculum.stages: 2 → 3"),
    ],
)
def test_members_that_need_another_program_are_refused(tmp_path, changes, named):
    first, other = configs_of(MEMBERS[:2])
    for name, value in changes.items():
        group, _, field = name.partition("__")
        other[group][field] = value
    assert not same_population(first, other)
    with pytest.raises(UserError, match=named):
        train_population([first, other], folders(tmp_path, 2))
    assert not any(tmp_path.iterdir())


def test_what_members_cannot_share_is_refused(tmp_path):
    two = MEMBERS[:2]
    for changes, message in [
        ({"curriculum__schedule": "adaptive"}, "curriculum.schedule is 'adaptive'"),
        ({"curriculum__smoothing": 1.0}, "curriculum.smoothing is 1"),
        ({"model__random_init": True}, "model.random_init draws the base"),
        ({"model__attention": "cudnn"}, "model.attention is 'cudnn'"),
    ]:
        with pytest.raises(UserError, match=message):
            train_population(configs_of(two, **changes), folders(tmp_path, 2))
    with pytest.raises(UserError, match="Members 1 and 2 of the population have the same config"):
        train_population(configs_of([MEMBERS[0]] * 2), folders(tmp_path, 2))
    with pytest.raises(UserError, match="Two members of the population have the folder"):
        train_population(configs_of(two), [tmp_path / "one"] * 2)
    with pytest.raises(UserError, match="no members"):
        train_population([], [])
    assert not any(tmp_path.iterdir())
    assert same_population(*configs_of(two))


def test_finished_members_are_left_and_begun_ones_need_their_company(tmp_path):
    root, outcomes = trained()
    run = tiny.copy_of(root, tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*.jsonl")}
    again = train_population(configs_of(), folders(run))
    assert [outcome.loss for outcome in again] == [outcome.loss for outcome in outcomes]
    assert {path: path.read_bytes() for path in run.rglob("*.jsonl")} == before
    with (run / "member-0" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')  # a kill cut it short
    assert outcome_of(configs_of()[0], run / "member-0").loss == outcomes[0].loss
    shutil.rmtree(run / "member-0" / "checkpoints" / "8")
    with pytest.raises(UserError, match=r"member-0 was begun in a population of 3"):
        train_population(configs_of(MEMBERS[:2]), folders(run, 2))
    (run / "member-0" / "population.json").unlink()
    with pytest.raises(UserError, match=r"member-0 was begun alone"):
        train_population(configs_of(), folders(run))


def test_a_population_goes_on_from_the_last_step_that_all_saved(tmp_path):
    for name, steps in {"a": (2, 4), "b": (4, 6), "c": (2, 4, 6)}.items():
        for step in steps:
            (tmp_path / name / "checkpoints" / str(step)).mkdir(parents=True)
    (tmp_path / "d").mkdir()
    paths = [tmp_path / name for name in "abc"]
    assert common_step(paths) == 4
    assert [saved_steps(path) for path in paths] == [[2, 4], [4], [2, 4]]
    assert common_step([*paths, tmp_path / "d"]) == 0
    assert [saved_steps(path) for path in paths] == [[], [], []]
