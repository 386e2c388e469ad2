"""A run's checkpoint is scored, with and without its adapter, behind any prompt of its ladder."""

import dataclasses
import functools
import json
import re
from collections import Counter

import pytest
import tiny

from pintern.assemble import split_decoder
from pintern.config import to_json
from pintern.curriculum import Level
from pintern.errors import UserError
from pintern.evaluation import run as scoring
from pintern.evaluation.decode import Generator, Sampling
from pintern.evaluation.run import InferencePrompt, evaluate, evaluate_together, write_evaluation
from pintern.evaluation.sandbox import seccomp
from pintern.training.probe import probe_score
from pintern.training.restore import restore_run
from pintern.training.workdir import read_config

ALONE = InferencePrompt(0.0, 0)


@functools.cache
def restored(**how):
    """Read once: tests replace what they change."""
    run = tiny.trained_run()
    return restore_run(run, read_config(run), **how)


def test_a_run_is_scored_and_written_down(tmp_path):
    parts, adapter, step = restored()
    assert step == 8
    done = []
    found = evaluate(parts, adapter, ALONE, progress=done.append)
    assert sum(done) == 8
    write_evaluation(tmp_path / "eval" / "8", found, ALONE)
    scores = json.loads((tmp_path / "eval" / "8" / "scores.json").read_text())
    predictions = tiny.lines(tmp_path / "eval" / "8" / "predictions.jsonl")
    assert [p["id"] for p in predictions] == [e.id for e in parts.prompts.task.test]
    assert [p["gold"] for p in predictions] == [e.completion for e in parts.prompts.task.test]
    right = [p["prediction"] == p["gold"] for p in predictions]
    assert scores["score"] == pytest.approx(100 * sum(right) / len(right))
    assert scores["interval"][0] <= scores["score"] <= scores["interval"][1]
    assert scores["prompt"] == {"keep_rate": 0.0, "shots": 0, "cached": True}
    tokens = scores["tokens"]
    assert tokens["template"] == len(parts.tokenizer.bos)
    assert tokens["examples"] == 0
    assert tokens["query"] > 5
    assert 1 <= tokens["output"] <= parts.config.eval.max_new_tokens


def test_output_tokens_count_eos_only_where_there_is_one():
    parts, _, _ = restored()
    test, limit = parts.prompts.task.test, parts.config.eval.max_new_tokens
    rows = scoring.test_rows(parts, ALONE)
    made = [[9] * limit, [9] * (limit - 1), [9], []] * (len(test) // 4)
    assert scoring.judge(parts, None, ALONE, rows, made).output == (limit + limit + 2 + 1) / 4


def test_further_metrics_are_written_beside_the_first(tmp_path):
    parts, adapter, _ = restored()
    task = dataclasses.replace(
        parts.prompts.task,
        further_metrics=("bleu", "exact"),
        metric_options={"tokenize": "char"},
    )
    parts = dataclasses.replace(parts, prompts=dataclasses.replace(parts.prompts, task=task))
    found = evaluate(parts, adapter, ALONE)
    write_evaluation(tmp_path, found, ALONE)
    further = json.loads((tmp_path / "scores.json").read_text())["further"]
    assert "tok:char" in further["bleu"]["signature"]
    predictions = tiny.lines(tmp_path / "predictions.jsonl")
    right = [100.0 * (p["prediction"] == p["gold"]) for p in predictions]
    assert [p["exact"] for p in predictions] == right
    assert further["exact"]["score"] == pytest.approx(sum(right) / len(right))
    assert sum(further["exact"]["reasons"].values()) == len(predictions)
    assert all(0 <= p["bleu"] <= 100.001 for p in predictions)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metric": "blec"}, "logical form"),
        ({"metric_options": {"normalise": "case"}}, "'case'"),
        ({"further_metrics": ("sql",)}, "needs a database"),
        pytest.param(
            {"further_metrics": ("pass",)},
            r"has no facts\.tests",
            marks=pytest.mark.skipif(not seccomp.supported(), reason="isn't confined here"),
        ),
    ],
)
def test_what_can_not_be_scored_is_told_before_it_is_generated(changes, said):
    parts, adapter, _ = restored()
    task = dataclasses.replace(parts.prompts.task, **changes)
    parts = dataclasses.replace(parts, prompts=dataclasses.replace(parts.prompts, task=task))
    done = []
    with pytest.raises(UserError, match=said):
        evaluate(parts, adapter, ALONE, progress=done.append)
    with pytest.raises(UserError, match=said):
        evaluate_together([(parts, adapter), (parts, None)], ALONE, progress=done.append)
    assert not done


def test_earlier_checkpoints_can_be_scored_and_absent_ones_are_told():
    assert restored(step=6)[2] == 6
    with pytest.raises(UserError, match=r"no checkpoint of step 7\. There are: 6, 8"):
        restored(step=7)


@pytest.mark.slow
def test_the_base_behind_the_full_prompt_from_the_command_line(tmp_path):
    run = tiny.copy_of(tiny.trained_run(), tmp_path / "run")
    arguments = ("--base", "--keep_rate=1", "--shots=1")
    code, out, err = tiny.run("-m", "pintern.evaluate", f"--workdir={run}", *arguments)
    assert code == 0, err
    folder = run / "eval" / "base-tau1-shots1"
    assert str(folder / "predictions.jsonl") in out
    assert len(tiny.lines(folder / "predictions.jsonl")) == 8
    tokens = json.loads((folder / "scores.json").read_text())["tokens"]
    assert tokens["template"] == len(tiny.parts().prompts.prefix(1.0))
    assert tokens["examples"] > 5


# One process for all: what it would score it names, or the refusal.
NAMES_FOLDERS = """
import json, sys, types
from absl import flags
from absl.testing import flagsaver
from pintern import cli, evaluate
from pintern.errors import UserError
from pintern.interop import read
read.read_adapter = lambda *_: types.SimpleNamespace(num_virtual_tokens=0)
evaluate._score = lambda *scored: told.append(scored[-1])
cli.define_config()
told = []
for given in json.loads(sys.argv[1]):
    with flagsaver.flagsaver():
        flags.FLAGS(["evaluate", *given])
        try:
            evaluate.main([])
        except UserError as error:
            told.append(str(error))
print(json.dumps(told))
"""


def evaluated(*given: tuple[str, ...]) -> list[str]:
    """The folders' names to which `pintern.evaluate` would write, called with each of these."""
    _, out, err = tiny.run("-c", NAMES_FOLDERS, json.dumps(given))
    assert out, err
    return json.loads(out.splitlines()[-1])


def test_what_is_scored_otherwise_has_a_folder_of_its_own(tmp_path):
    run = tiny.copy_of(tiny.trained_run(), tmp_path / "run")
    config = tiny.config(eval__keep_rate=1.0, eval__shots=1)
    (run / "config.json").write_text(to_json(config))
    folders = {
        (): "8",
        ("--temperature=0.9",): "8-temperature0.9",
        ("--temperature=0.9", "--samples=3"): "8-samples3-temperature0.9",
        ("--keep_rate=0", "--shots=0", "--step=6"): "6-tau0-shots0",
        ("--base",): "base",
        ("--base", "--temperature=0.9"): "base-temperature0.9",
    }
    adapters = [(f"--adapter={tmp_path / each / 'peft'}",) for each in "ab"]
    given = [(f"--workdir={run}", *flags) for flags in (*folders, *adapters)]
    *names, one, other = evaluated(*given)
    assert names == list(folders.values())
    assert one != other and all(name.startswith("adapter-peft-") for name in (one, other))


def test_a_config_beside_a_run_may_change_how_it_is_scored_alone(tmp_path):
    (tmp_path / "other").mkdir()
    longer = f"--config={tiny.config_file(tmp_path, tiny.config(eval__max_new_tokens=5))}"
    other = f"--config={tiny.config_file(tmp_path / 'other', tiny.config(task__metric='bleu'))}"
    run = f"--workdir={tiny.trained_run()}"
    told = evaluated(*((run, *who, what) for what in (longer, other) for who in ((), ("--base",))))
    assert told[:2] == ["8-tokens5", "base-tokens5"]
    for refusal in told[2:]:
        assert re.search(r"task\.metric: 'exact' → 'bleu'.*Leave out --config", refusal)


@pytest.mark.slow
def test_a_run_s_own_config_is_scored_with_other_fields_of_eval_and_no_others(tmp_path):
    run = tiny.copy_of(tiny.trained_run(), tmp_path / "run")
    command = ("-m", "pintern.evaluate", f"--workdir={run}")
    for base in ((), ("--base",)):
        code, _, err = tiny.run(*command, *base, "--config.eval.max_new_tokens=1")
        assert code == 0, err
        code, _, err = tiny.run(*command, *base, "--config.train.steps=9")
        assert code == 2
        assert "train.steps: 8 → 9" in err
    rows = tiny.lines(run / "eval" / "8-tokens1" / "predictions.jsonl")
    assert {len(row["prediction"].split()) for row in rows} <= {0, 1}


def test_what_is_absent_is_told_in_one_line(tmp_path):
    empty = tmp_path / "empty"
    untrained = tmp_path / "untrained"
    untrained.mkdir()
    run = tiny.trained_run()
    for name in ("config.json", "base.json"):
        (untrained / name).write_text((run / name).read_text())
    with pytest.raises(UserError, match="holds no checkpoint; train first"):
        restore_run(untrained, read_config(untrained))
    code, _, err = tiny.run("-m", "pintern.evaluate", f"--workdir={empty}")
    assert code == 2
    assert err.startswith("error:")
    assert "holds no run" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("scored", "named"), [("--base", "the base"), ("--adapter=/nowhere", "--adapter")]
)
def test_a_step_of_what_has_none_is_refused(scored, named):
    run = f"--workdir={tiny.trained_run()}"
    code, out, err = tiny.run("-m", "pintern.evaluate", run, scored, "--step=99")
    assert (code, out) == (2, "")
    assert err == (
        f"error: --step=99 names a checkpoint of the run, but {named} is scored. "
        "Leave one of them out.\n"
    )


def test_a_test_prompt_longer_than_the_context_is_named():
    parts, adapter, _ = restored()
    short = dataclasses.replace(parts.checkpoint.config, max_positions=64)
    checkpoint = dataclasses.replace(parts.checkpoint, config=short)
    with pytest.raises(UserError, match=r"Test example example-\d+ at τ=1 with 1 shots is \d+"):
        evaluate(
            dataclasses.replace(parts, checkpoint=checkpoint), adapter, InferencePrompt(1.0, 1)
        )


@pytest.mark.parametrize("prompt", [ALONE, InferencePrompt(1.0, 1)])
def test_members_in_one_batch_are_scored_as_alone(prompt):
    parts, adapter, _ = restored()
    other = adapter.replace(scale=2 * adapter.scale)
    members = [(parts, adapter), (parts, None), (parts, other)]
    found = evaluate_together(members, prompt)
    alone = [evaluate(*member, prompt) for member in members]
    assert [e.predictions for e in found] == [e.predictions for e in alone]
    assert [dataclasses.asdict(e) for e in found] == [dataclasses.asdict(e) for e in alone]
    assert len({str(e.predictions) for e in found}) > 1


def test_the_probe_scores_labelled_pairs_at_the_level():
    """Where the base's own answers are the labels, it scores 100; on the real ones it doesn't."""
    parts, _, _ = restored(base=True)
    prompts, level = parts.prompts, Level(0.0, 0)
    generator = Generator(
        *split_decoder(parts.checkpoint),
        None,
        prompts.prefix(level.keep_rate),
        Sampling(parts.config.eval.max_new_tokens, parts.tokenizer.eos),
    )
    rows = prompts.request_rows(prompts.task.train, level.shots)
    made = generator([row.tokens for row in rows], batch_rows=parts.config.eval.batch_rows)
    train = tuple(
        dataclasses.replace(example, completion=parts.tokenizer.decode(ids).strip())
        for example, ids in zip(prompts.task.train, made, strict=True)
    )
    task = dataclasses.replace(prompts.task, train=train)
    known = dataclasses.replace(parts, prompts=dataclasses.replace(prompts, task=task))
    assert probe_score(known, None, level) == 100
    assert probe_score(parts, None, level) < 100


def drawing(samples, **changes):
    parts, adapter, _ = restored()
    config = parts.config.copy_and_resolve_references()
    config.eval.temperature, config.eval.samples = 1.0, samples
    parts = dataclasses.replace(parts, config=config, **changes)
    return evaluate(parts, adapter, ALONE)


def test_several_samples_are_averaged_and_more_of_them_change_none(tmp_path):
    one, three, four = drawing(1), drawing(3), drawing(4)
    for few, many in zip(three.predictions, four.predictions, strict=True):
        assert few["samples"] == many["samples"][:3]
        assert few["prediction"] == few["samples"][0]
    assert [p["prediction"] for p in one.predictions] == [
        p["prediction"] for p in three.predictions
    ]
    assert all("samples" not in prediction for prediction in one.predictions)
    assert len({text for p in four.predictions for text in p["samples"]}) > 8
    assert (list(one.pass_at), list(three.pass_at)) == ([], [1, 2, 3])
    write_evaluation(tmp_path, three, ALONE)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["pass_at"]["1"] == pytest.approx(scores["score"])
    assert scores["decoding"] == {
        "max_new_tokens": 4,
        "temperature": 1.0,
        "samples": 3,
        "seed": 0,
    }


@pytest.mark.skipif(not seccomp.supported(), reason="programs aren't confined here")
def test_programs_are_run_and_pass_at_k_counts_the_right_ones():
    """The answers of a random model are no programs, but for those that end as they begin."""
    answers = [prediction["samples"] for prediction in drawing(3).predictions]
    end = Counter(text[:1] for texts in answers for text in texts).most_common(1)[0][0]
    parts, _, _ = restored()
    facts = {"tests": ("assert True",), "names": ("unused",)}
    test = tuple(dataclasses.replace(e, facts=facts) for e in parts.prompts.task.test)
    task = dataclasses.replace(
        parts.prompts.task, test=test, metric="pass", metric_options={"end": end}
    )
    found = drawing(3, prompts=dataclasses.replace(parts.prompts, task=task))
    empty = [sum(text.startswith(end) for text in texts) for texts in answers]
    assert 0 < sum(empty) < 24
    scores = found.scores.per_example
    assert all(score >= 100 * count / 3 - 1e-9 for score, count in zip(scores, empty, strict=True))
    assert found.scores.value == pytest.approx(sum(scores) / 8)
    assert found.pass_at[1] <= found.pass_at[2] <= found.pass_at[3]
    assert found.pass_at[3] == pytest.approx(100 * sum(score > 0 for score in scores) / 8)
    assert sum(found.scores.reasons.values()) == 24
    assert "seccomp" in found.scores.signature
