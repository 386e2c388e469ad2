"""Measurements of a cell: divergence, forgetting, transfer, staleness; and the statistics."""

import dataclasses
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pintern.adapters.adapter import Adapter, LoraPair
from pintern.assemble import fresh_adapter
from pintern.config import fingerprint
from pintern.errors import UserError
from pintern.evaluation.metrics import score_predictions
from pintern.evaluation.run import InferencePrompt
from pintern.models.shared_prefix import target_logits
from pintern.prompts.task import Example
from pintern.studies import diagnostics, staleness, statistics
from pintern.studies.divergence import divergence, negative_log_likelihood
from pintern.studies.folder import finished_lines
from pintern.studies.ledger import Ledger
from pintern.studies.load import load_study
from pintern.studies.report import write_report
from pintern.studies.results import results_of
from pintern.studies.runner import run_study
from pintern.studies.staleness import Edit, Staleness
from pintern.studies.study import cells_of
from pintern.training.batches import Shape, make_batch
from tests import tiny
from tests.study_files import study_file

FULL, BARE = InferencePrompt(1.0, 1), InferencePrompt(0.0, 0)


def loud_adapter(parts) -> Adapter:
    """An adapter that changes what the model says."""
    adapter = fresh_adapter(parts)
    keys = iter(jax.random.split(jax.random.key(1), 2 * len(adapter.lora)))
    lora = {
        name: LoraPair(
            a=0.3 * jax.random.normal(next(keys), pair.a.shape),
            b=0.3 * jax.random.normal(next(keys), pair.b.shape),
        )
        for name, pair in adapter.lora.items()
    }
    return adapter.replace(lora=lora)


def test_divergence_is_zero_to_itself_and_positive_to_others():
    parts = tiny.parts()
    examples = parts.prompts.task.test
    assert divergence(parts, (None, FULL), (None, FULL), examples) == pytest.approx(0, abs=1e-6)
    other = divergence(parts, (None, FULL), (None, BARE), examples)
    assert other > 1e-3
    changed = divergence(parts, (None, BARE), (loud_adapter(parts), BARE), examples)
    assert changed > 1e-3


def test_divergence_and_likelihood_are_those_of_each_example_alone():
    """Batches, padding and their filling change nothing: one row at a time gives the same."""
    parts = tiny.parts()
    adapter, prompts = loud_adapter(parts), parts.prompts
    examples = prompts.task.test[:5]
    read = nnx.jit(lambda decoder, batch, on: target_logits(decoder, batch, adapter=on))
    kls, nats, tokens = [], [], 0
    for example in examples:
        (piece,) = prompts.renderer.pieces([example])
        (shot,) = prompts.shots_for([example.query], 1)
        logits = []
        for shots, rate, on in ((shot, 1.0, None), ((), 0.0, adapter)):
            row, prefix = prompts.renderer.row(piece, shots), prompts.prefix(rate)
            size = Shape(len(prefix), len(row.tokens), len(row.tokens) - row.start)
            batch = jax.tree.map(jnp.asarray, make_batch(prefix, [row], size))
            logits.append(read(parts.checkpoint.decoder, batch, on)[0, 0])
        wanted, given = (np.asarray(jax.nn.log_softmax(part), np.float64) for part in logits)
        kls.append((np.exp(wanted) * (wanted - given)).sum())
        nats.append(-given[np.arange(len(given)), row.tokens[row.start :]].sum())
        tokens += len(given)
    found = divergence(parts, (None, FULL), (adapter, BARE), examples)
    assert found == pytest.approx(sum(kls) / tokens, rel=1e-4)
    found = negative_log_likelihood(parts, adapter, BARE, examples)
    assert found == pytest.approx(sum(nats) / tokens, rel=1e-4)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A study with every measure, on two tasks."""
    root = tmp_path_factory.mktemp("diagnostics")
    other = root / "other.txt"
    other.write_text(tiny.TEMPLATE.replace("shelf", "place"))
    tasks = {"store": {}, "depot": {"task.template": str(other), "task.max_test": 6}}
    kinds = ["kl", "latency", "forgetting", "transfer"]
    path = study_file(root / "file", tasks=tasks, measures=kinds, seeds=[0])
    study = load_study(str(path))
    assert run_study(study, root / "runs", only=["store/*"])
    return study, root / "runs"


def test_every_measure_stands_in_the_ledger(measured):
    _, workdir = measured
    lines = Ledger(workdir).lines()
    line = lines["store/nano/ours/seed-0"]
    kl = line["measures"]["kl"]
    assert [point["step"] for point in kl["stages"]] == [4]
    assert min(kl["untrained"], kl["stages"][0]["kl"], kl["final"]) > 0
    assert kl["final"] != kl["untrained"]
    forgotten = line["measures"]["forgetting"]
    assert forgotten["before"]["nats"] != forgotten["after"]["nats"]
    assert forgotten["change"] == forgotten["after"]["score"] - forgotten["before"]["score"]
    assert line["measures"]["latency"]["total_p50"] > 0
    scores = line["measures"]["transfer"]["scores"]
    assert set(scores) == {"store", "depot"} and scores["store"] == line["score"]
    # An untrained arm has nothing of the kind.
    assert lines["store/nano/prompted/seed-0"]["measures"] == {}


def test_transfer_goes_to_the_target_as_its_own_cell_has_it(tmp_path, monkeypatch):
    """What the source's task sets and the target's doesn't has no place on the target."""
    other = tmp_path / "other.txt"
    other.write_text(tiny.TEMPLATE.replace("shelf", "place"))
    depot = {"task.template": str(other), "task.max_test": 6, "eval.shots": 1}
    tasks = {"store": {}, "depot": depot}
    study = load_study(str(study_file(tmp_path / "file", tasks=tasks, arms=["ours"], reference="")))
    store, away = (cell for cell in cells_of(study) if cell.seed == 1)
    assert (store.arm.prompt.shots, away.arm.prompt.shots) == (0, 1)
    asked = []

    def evaluate(parts, adapter, prompt):
        task = parts.prompts.task
        asked.append((task.template, len(task.test), prompt.shots))
        return SimpleNamespace(scores=SimpleNamespace(value=25.0))

    monkeypatch.setattr(diagnostics, "evaluate", evaluate)
    parts = tiny.parts()
    own = SimpleNamespace(scores=SimpleNamespace(value=75.0))
    measured = SimpleNamespace(parts=parts, adapter=None, evaluation=own)
    found = diagnostics.Transfer()(SimpleNamespace(study=study, cell=away, measured=measured))
    assert asked == [(tiny.TEMPLATE, len(parts.prompts.task.test), 0)]
    assert found["scores"] == {"store": 25.0, "depot": 75.0}
    assert found["configs"]["store"] == fingerprint(store.arm.config)


def test_untrained_forgetting_is_the_same_before_training_wherever_it_is_measured(measured):
    _, workdir = measured
    lines = Ledger(workdir).lines()
    before = [lines[f"store/nano/{arm}/seed-0"] for arm in ("ours", "direct")]
    one, other = (line["measures"]["forgetting"]["before"] for line in before)
    assert one == other


def test_transfer_and_kl_are_drawn(measured):
    study, workdir = measured
    _, page = write_report(study, workdir, command="x")
    drawn = {path.name for path in page.parent.glob("*.png")}
    assert {"transfer-nano.png", "store-nano-kl.png", "store-nano-pareto.png"} <= drawn
    assert "store-nano-curriculum.png" in drawn


def test_internalisation_is_the_share_of_what_the_prompt_gives(measured):
    study, workdir = measured
    lines = [line for _, line in finished_lines(study, workdir).values()]
    for line, score in zip(lines, itertools.cycle([10.0, 50.0, 40.0, 30.0]), strict=False):
        line["score"] = score
    store = [r for r in results_of(study, lines, workdir) if r.task == "store"]
    found = {r.arm: r.internalisation for r in store}
    by_arm = {r.arm: r.score for r in store}
    for arm in ("direct", "ours"):
        share = (by_arm[arm] - by_arm["query only"]) / (by_arm["prompted"] - by_arm["query only"])
        assert found[arm] == pytest.approx(share)
    assert found["prompted"] is None and found["query only"] is None


def test_an_edited_prompt_makes_an_adapter_stale_and_training_goes_on_from_it(tmp_path):
    few = {"arms": ["ours"], "reference": "", "seeds": [0], "measures": ["staleness"]}
    changes = {"task__unlabelled": str(tiny.task() / "log.jsonl")}
    study = load_study(str(study_file(tmp_path / "file", changes=changes, **few)))
    workdir = tmp_path / "runs"
    # The study's edit concerns answers that no test example has: told, not measured as nothing.
    edit = study.measures[0].edits[0]
    golds = [e.completion for e in tiny.parts().prompts.task.test]
    answer = golds[0]
    other = dataclasses.replace(edit, answer=answer, new_answer="shelf eleven")
    measure = dataclasses.replace(study.measures[0], edits=(other,))
    study = dataclasses.replace(study, measures=(measure,))
    assert run_study(study, workdir)
    found = Ledger(workdir).lines()["store/nano/ours/seed-0"]["measures"]["staleness"]
    affected = sum(answer in gold for gold in golds)
    assert found["affected_queries"] == affected
    assert found["other_queries"] == len(golds) - affected
    assert [point["step"] for point in found["curve"]] == [0, 2, 4]
    assert found["curve"][0] == {"step": 0, **found["stale"]}
    (folder,) = (workdir / "cells/store/nano/ours/seed-0").glob("staleness-*")
    assert edit.new_line in (folder / "template.txt").read_text()
    # The first of the further steps starts from the cell's own adapter, not from a fresh one.
    assert answer not in (folder / "train.jsonl").read_text()
    assert (folder / "adapter" / "pintern.json").exists()
    write_report(study, workdir, command="x")
    assert (workdir / "report" / "store-nano-stale-ours.png").exists()


def test_an_edit_changes_every_right_answer():
    edit = Edit("line", "new line", "shelf 2", "shelf 5", ())
    old = Example("where?", "shelf 2", references=("shelf 2", "on shelf 2"))
    new, changed = Staleness((edit,))._changed(old)
    assert changed
    scores = score_predictions("exact", ["shelf 2", "shelf 5", "on shelf 5"], [new] * 3)
    assert scores.per_example == [0, 100, 100]


def edit_of(parts):
    gold = parts.prompts.task.test[0].completion
    return Edit("bolts lie on shelf four", "bolts lie on shelf two", gold, "shelf eleven", ())


def test_staleness_without_a_log_is_refused(tmp_path):
    parts = tiny.parts()
    measure = Staleness((edit_of(parts),))
    with pytest.raises(UserError, match=r"queries of a log.*config\.task\.unlabelled"):
        measure._write(staleness._with(parts, unlabelled=()), tmp_path)


def test_staleness_scores_by_the_tasks_settings_and_keeps_every_point(tmp_path, monkeypatch):
    parts = staleness._with(tiny.parts(), metric_options={"normalise": "brackets"})
    parts.config.checkpoint.minutes = 5.0
    scored, trained = [], []

    def evaluate(given, adapter, prompt):
        scored.append(given.prompts.task.metric_options)
        return SimpleNamespace(scores=SimpleNamespace(value=0.0))

    monkeypatch.setattr(staleness, "evaluate", evaluate)
    monkeypatch.setattr(staleness, "train", lambda config, _: trained.append(config) or True)
    monkeypatch.setattr(staleness, "restore_run", lambda *_: (None, None, None))
    monkeypatch.setattr(Staleness, "_export", lambda *_: None)
    cell = SimpleNamespace(arm=SimpleNamespace(prompt=BARE))
    measured = SimpleNamespace(parts=parts, adapter=None)
    found = Staleness((edit_of(parts),), steps=10, every=4, queries=8, shots=1)(
        SimpleNamespace(measured=measured, folder=tmp_path, cell=cell)
    )
    # Wherever the training was stopped by signals, each of which saves a checkpoint.
    assert [point["step"] for point in found["curve"]] == [0, 4, 8, 10]
    assert scored == [{"normalise": "brackets"}] * 11
    # Nothing pushes the first points of the curve out, nor saves by the clock.
    assert (trained[0].checkpoint.minutes, trained[0].checkpoint.keep) == (0, 11)


def test_an_edit_that_changes_nothing_is_refused(measured, tmp_path):
    study, workdir = measured
    runs = tiny.copy_of(workdir, tmp_path / "runs")  # trained: it is scored again alone
    for edit, message in (
        (Edit("no such line", "x", "shelf", "y", ()), "no 'no such line'"),
        (Edit("bolts lie", "bolts stand", "no such answer", "y", ()), "change 0"),
    ):
        bad = dataclasses.replace(study, measures=(Staleness((edit,)),))
        with pytest.raises(UserError, match=message):
            run_study(bad, runs, only=["store/*/ours/*"], redo=["*"])


def test_permutation_p_is_exact_for_few_examples():
    """All sign patterns of ten differences, counted one by one."""
    values = np.random.default_rng(0).normal(0.5, 1, 10)
    signs = np.array(list(itertools.product([-1, 1], repeat=10)))
    exact = (np.abs(signs @ values) >= abs(values.sum()) - 1e-9).mean()
    assert statistics.permutation_p(values) == pytest.approx(exact, abs=0.015)


def test_permutation_p_is_uniform_without_a_difference_and_small_with_one():
    rng = np.random.default_rng(1)
    ps = [statistics.permutation_p(rng.normal(0, 1, 30), seed=i) for i in range(200)]
    assert 0.02 <= np.mean(np.array(ps) < 0.1) <= 0.2
    assert statistics.permutation_p([5.0] * 30) < 0.001
    assert statistics.permutation_p([0.0] * 30) == 1.0
    assert statistics.permutation_p([]) is None


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, None, 0.03]) == pytest.approx(
        [0.03, 0.06, None, 0.06], nan_ok=True
    )
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]


def test_pairs_are_made_by_example_within_a_seed():
    ours = {0: {"a": 100.0, "b": 0.0}, 1: {"a": 0.0, "c": 100.0}}
    first = {0: {"a": 50.0, "b": 50.0, "c": 0.0}}
    assert statistics.paired_differences(ours, first) == [50.0, -50.0]
    # a: (50 − 50)/2, b: −50, c: 100; an arm that no seed changes stands against both.
    once = statistics.at_every_seed(first, (0, 1))
    assert statistics.paired_differences(ours, once) == [0.0, -50.0, 100.0]
    assert statistics.paired_differences(once, ours) == [0.0, 50.0, -100.0]
    assert statistics.paired_differences({0: {"a": 1.0}}, {0: {"z": 1.0}}) == []


def test_interval_takes_an_example_with_all_of_its_seeds():
    """Repeating the same seed makes nothing more certain."""
    rng = np.random.default_rng(0)
    one = {key: float(score) for key, score in enumerate(rng.integers(0, 2, 50) * 100)}
    assert statistics.interval({0: one}) == statistics.interval({0: one, 1: one, 2: one})
