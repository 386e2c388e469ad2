"""The thirteen arms: each a config alone, trained and scored by the same code."""

import importlib
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from experiments.company.arms import CACHED, FULL, OURS, company_arms
from pintern.arms import arm_of, run_arms
from pintern.assemble import new_adapter
from pintern.config import default_config, differences, to_json, validate
from pintern.errors import UserError
from pintern.schedules import curriculum_of
from pintern.training.loop import train
from pintern.training.restore import restore_run

FOLDER = tiny.REPOSITORY / "experiments" / "arms"
K = 2
QUERY, FULL_PROMPT = (0.0, 0), (1.0, K)
# Trained; prompt at the first and last step of training; prompt at inference; losses.
LEDGER = {
    "zero_shot": ("–", None, QUERY, ""),
    "icl": ("–", None, FULL_PROMPT, ""),
    "icl_cached": ("–", None, FULL_PROMPT, ""),
    "compressed_prompt": ("–", None, (0.5, K), ""),
    "prompt_tuning": ("soft prompt", (QUERY, QUERY), QUERY, "CE"),
    "ipt": ("soft prompt", ((0.0, 1), (0.0, 1)), (0.0, 1), "CE"),
    "direct_fine_tuning": ("LoRA", (QUERY, QUERY), QUERY, "CE"),
    "full_prompt_fine_tuning": ("LoRA", (FULL_PROMPT, FULL_PROMPT), FULL_PROMPT, "CE"),
    "abrupt_drop": ("LoRA", (FULL_PROMPT, FULL_PROMPT), QUERY, "CE"),
    "promptintern": ("LoRA", (FULL_PROMPT, QUERY), QUERY, "CE"),
    "context_distillation": ("LoRA", (QUERY, QUERY), QUERY, "KL"),
    "promptintern_distillation": ("LoRA", (FULL_PROMPT, QUERY), QUERY, "CE + KL"),
    "hybrid": ("LoRA + soft prompt", (FULL_PROMPT, QUERY), QUERY, "CE"),
}
arms = pytest.mark.parametrize("name", LEDGER)


def config_of(name):
    return importlib.import_module(f"experiments.arms.{name}").get_config()


def shrunk(config, **changes):
    """The arm on the tiny task and model, for four steps."""
    small = tiny.config(**changes)
    small.name = config.name
    for field in ("schedule", "stages", "keep_rates", "shots"):
        small.curriculum[field] = config.curriculum[field]
    small.prompt.max_shots = config.prompt.max_shots
    small.adapter.targets = config.adapter.targets
    small.adapter.soft_prompt = min(config.adapter.soft_prompt, 3)
    small.distill = config.distill
    small.distill.unlabelled = min(config.distill.unlabelled, 4)
    small.distill.by_confidence = not small.distill.weight  # a random base believes in nothing
    small.train.ce_weight = config.train.ce_weight
    for field in ("keep_rate", "shots", "cached"):
        small.eval[field] = config.eval[field]
    if "train__steps" not in changes:
        small.train.steps = 4
    return small


def test_the_ledger_is_the_folder():
    files = {path.stem for path in FOLDER.glob("*.py")} - {"__init__", "base"}
    assert files == set(LEDGER)


@arms
def test_each_arm_is_the_ledgers_point(name):
    config = validate(config_of(name))
    trained, training, inference, losses = LEDGER[name]
    arm = arm_of(config)
    assert arm.what_is_trained == trained
    assert arm.trained == (trained != "–")
    assert (arm.prompt.keep_rate, arm.prompt.shots) == inference
    assert arm.prompt.cached == (name != "icl")
    if training:
        levels = curriculum_of(config).levels
        assert (tuple(levels[0]), tuple(levels[-1])) == training
        found = ["CE"] * (config.train.ce_weight > 0) + ["KL"] * (config.distill.weight > 0)
        assert " + ".join(found) == losses


def test_arms_are_trained_alike():
    """Equal steps over equal examples: only what makes the arm differs, and soft prompts' rate."""
    allowed = ("name", "adapter.", "curriculum.", "distill.", "eval.", "train.ce_weight")
    base = config_of("direct_fine_tuning")
    for name, (trained, *_) in LEDGER.items():
        own = ("train.learning_rate",) if trained == "soft prompt" else ()
        for change in differences(base, config_of(name)):
            assert change.startswith(allowed + own), (name, change)


def test_an_arm_has_a_config_of_its_own():
    config = config_of("icl")
    arm = arm_of(config, seed=7, name="other", scored_as="ICL")
    assert (arm.config.seed, arm.config.name, arm.name) == (7, "other", "other")
    assert (config.seed, config.name, arm.scored_as) == (0, "ICL", "ICL")


def test_the_quickstarts_rows_are_arms_of_the_ledger():
    rows = {arm.name: arm for arm in company_arms(3)}
    assert len(rows) == 7
    assert {arm.config.seed for arm in rows.values()} == {3}
    assert rows[CACHED].scored_as == FULL
    assert not rows[FULL].prompt.cached
    assert rows[CACHED].prompt.cached
    ours = config_of("promptintern_distillation")
    ours.seed = 3
    assert to_json(rows[OURS].config) == to_json(ours)


@pytest.mark.slow
@arms
def test_each_arm_trains_and_is_scored(name, tmp_path):
    trained, training, (rate, shots), losses = LEDGER[name]
    arm = arm_of(shrunk(config_of(name)))
    [measured] = run_arms([arm], tmp_path)
    folder = tmp_path / "arms" / arm.folder
    step = 4 if training else 0
    scores = json.loads((folder / "eval" / str(step) / "scores.json").read_text())
    assert scores["prompt"] == {"keep_rate": rate, "shots": shots, "cached": name != "icl"}
    assert len(tiny.lines(folder / "eval" / str(step) / "predictions.jsonl")) == 8
    virtual = arm.config.adapter.soft_prompt
    prefix = len(measured.parts.prompts.prefix(rate))
    assert measured.evaluation.template == prefix + virtual
    assert (measured.evaluation.examples > 5) == (shots > 0)
    if not training:
        assert measured.adapter is None
        return
    rows = tiny.lines(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert (
        (rows[0]["keep_rate"], rows[0]["shots"]),
        (rows[-1]["keep_rate"], rows[-1]["shots"]),
    ) == (training)
    assert ("kl" in rows[-1]) == ("KL" in losses)
    assert measured.adapter.num_virtual_tokens == virtual
    assert bool(measured.adapter.lora) == ("LoRA" in trained)
    # Every part that is said to be trained has moved from where it started.
    start = new_adapter(measured.parts)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), start, measured.adapter)
    assert all(jax.tree.leaves(moved))


def test_cached_and_uncached_icl_answer_alike(tmp_path):
    pair = [arm_of(shrunk(config_of(name), task__max_test=3)) for name in ("icl", "icl_cached")]
    one, two = run_arms(pair, tmp_path)
    assert [p["prediction"] for p in one.evaluation.predictions] == [
        p["prediction"] for p in two.evaluation.predictions
    ]


def test_an_arm_that_trains_nothing_is_not_trained(tmp_path):
    with pytest.raises(UserError, match=r"nothing would be trained.*pintern\.evaluate"):
        train(shrunk(config_of("icl")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ── the command lines ──


def overrides(config) -> list[str]:
    """The flags that take an arm of experiments/arms to another task and model."""
    flags = []
    for change in differences(default_config(), config):
        field = change.partition(":")[0]
        if field.split(".")[0] in ("model", "task", "prompt", "train", "eval"):
            group, name = field.split(".")
            flags.append(f"--config.{field}={config[group][name]}")
    return flags


@pytest.mark.slow
def test_an_arm_is_scored_from_its_config_with_and_without_a_folder(tmp_path):
    small = overrides(shrunk(config_of("zero_shot"), task__max_test=3))
    file = f"--config={FOLDER / 'zero_shot.py'}"
    code, alone, err = tiny.run("-m", "pintern.evaluate", file, *small)
    assert code == 0, err
    assert "base" in alone
    assert "Predictions" not in alone
    run = tmp_path / "run"
    code, out, err = tiny.run("-m", "pintern.evaluate", file, *small, f"--workdir={run}")
    assert code == 0, err
    assert out.startswith(alone)
    assert len(tiny.lines(run / "eval" / "base" / "predictions.jsonl")) == 3
    # The folder is a run's from now on: its own config scores the base again.
    code, out, err = tiny.run("-m", "pintern.evaluate", f"--workdir={run}")
    assert (code, out.splitlines()[0]) == (0, alone.splitlines()[0]), err
    code, _, err = tiny.run(
        "-m", "pintern.export", f"--workdir={run}", "--format=peft", f"--out={tmp_path / 'out'}"
    )
    assert code == 2
    assert "trains nothing" in err


@pytest.mark.slow
def test_the_hybrid_trains_is_scored_and_goes_out_from_the_command_line(tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    small = shrunk(config_of("hybrid"), task__max_test=4)
    config = [f"--config={FOLDER / 'hybrid.py'}", *overrides(small), "--config.adapter.rank=2"]
    code, _, err = tiny.run("-m", "pintern.evaluate", *config)
    assert code == 2
    assert "no run of it is named" in err
    where = f"--workdir={run}"
    code, _, err = tiny.run("-m", "pintern.train", *config, where)
    assert code == 0, err
    code, said, err = tiny.run("-m", "pintern.evaluate", *config, where)
    assert code == 0, err
    cut, score, *_ = said.splitlines()
    assert cut.startswith("Cut to the first 4 of 8 test examples")
    assert score.endswith(", 4")
    code, _, err = tiny.run("-m", "pintern.evaluate", *config, where, "--config.train.steps=5")
    assert code == 2
    assert "train.steps: 4 → 5" in err
    for form in ("peft", "merged"):
        code, said, err = tiny.run(
            "-m", "pintern.export", where, f"--format={form}", f"--out={out / form}", "--check"
        )
        assert code == 0, (said, err)
        assert (out / form / "soft_prompt").is_dir()
    code, said, err = tiny.run("-m", "pintern.evaluate", where, f"--adapter={out / 'peft'}")
    assert code == 0, err
    mine, theirs = (
        tiny.lines(next((run / "eval").glob(name)) / "predictions.jsonl")
        for name in ("4", "adapter-peft-*")
    )
    assert [p["prediction"] for p in mine] == [p["prediction"] for p in theirs]


# ── resumed equals uninterrupted, with every option of training on ──

OPTIONS = {
    "train__steps": 8,
    "checkpoint__every": 2,
    "checkpoint__keep": 9,
    "curriculum__smoothing": 0.7,
    "train__reset_optimizer": True,
    "train__prompt_loss_weight": 0.1,
}


@pytest.mark.slow
def test_a_hybrid_with_every_option_resumes_bit_for_bit(tmp_path):
    config = shrunk(config_of("hybrid"), **OPTIONS)
    config.curriculum.stages = 2
    config.distill.update(weight=0.5, top_k=5, unlabelled=4, labelled=False, shots=1)
    whole = tmp_path / "whole"
    assert train(config, whole)
    rows = tiny.lines(whole / "metrics.jsonl")
    scheduled = [1.0] * 4 + [0.0] * 4
    ahead = [row["keep_rate"] < rate for row, rate in zip(rows, scheduled, strict=True)]
    assert 0 < sum(ahead) < 4
    # A step holds labelled pairs, with their prompts' loss, or the teacher's answers, or both.
    assert any(row["kl"] > 0 for row in rows)
    assert all((row["loss"] > 0) == (row["prompt_loss"] > 0) for row in rows)
    assert all(row["kl"] > 0 or row["loss"] > 0 for row in rows)
    _, adapter, _ = restore_run(whole, config)
    for step in (4, 6):  # where a stage begins, and within one
        cut = tiny.copy_of(whole, tmp_path / f"cut-{step}")
        for checkpoint in (cut / "checkpoints").iterdir():
            if int(checkpoint.name) > step:
                shutil.rmtree(checkpoint)
        assert train(config, cut)
        assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
        _, again, _ = restore_run(cut, config)
        for a, b in zip(jax.tree.leaves(adapter), jax.tree.leaves(again), strict=True):
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert Path(whole / "teacher.jsonl").exists()


@pytest.mark.slow
def test_distillation_without_labels_trains_on_the_log_alone(tmp_path):
    config = shrunk(config_of("context_distillation"))
    config.distill.labelled = False
    assert train(config, tmp_path / "run")
    rows = tiny.lines(tmp_path / "run" / "metrics.jsonl")
    assert all(row["loss"] == 0 and row["kl"] > 0 for row in rows)
