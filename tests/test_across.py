"""What stands beside the tables of single tasks: all tasks together, contrasts, transfer."""

import dataclasses
import json
import random

import pytest

from experiments.arms import prompt_tuning
from pintern.arms import arm_of
from pintern.config import fingerprint
from pintern.errors import UserError
from pintern.evaluation.run import write_lines
from pintern.studies.across import across_tasks, transfers_of
from pintern.studies.results import dig, read_predictions, results_of
from pintern.studies.study import Row, Study, cells_of
from pintern.studies.tables import legend

TASKS, SEEDS, EXAMPLES = ("a", "b"), (0, 1, 2), 40
SHARE = {"weak": 0.2, "strong": 0.8}


def arm(name):
    return Row(lambda seed: arm_of(prompt_tuning.get_config(), seed=seed, name=name))


def study(contrasts=(("strong", "weak"), ("weak", "weak"))):
    return Study(
        name="made",
        question="?",
        rows=tuple(arm(name) for name in SHARE),
        tasks={task: {} for task in TASKS},
        contrasts=contrasts,
    )


@pytest.fixture
def lines(tmp_path):
    """Ledger lines whose right answers are drawn: each arm its share of them."""
    rng, made = random.Random(0), []
    for name, share in SHARE.items():
        for task in TASKS:
            for seed in SEEDS:
                scores = [100.0 * (rng.random() < share) for _ in range(EXAMPLES)]
                file = f"{name}-{task}-{seed}.jsonl"
                answers = [
                    {"query": f"q{i}", "gold": "g", "score": s} for i, s in enumerate(scores)
                ]
                (tmp_path / file).write_text("".join(json.dumps(a) + "\n" for a in answers))
                measures = {}
                if name == "strong":
                    own = {t: 90.0 if t == task else 10.0 + seed for t in TASKS}
                    measures["transfer"] = {"scores": own, "shots": 0}
                made.append(
                    {
                        "arm": name,
                        "task": task,
                        "model": "nano",
                        "seed": seed,
                        "metric": "exact",
                        "signature": "exact|pintern-1",
                        "factors": {},
                        "predictions": file,
                        "score": sum(scores) / EXAMPLES,
                        "measures": measures,
                    }
                )
    return made


def tables(lines, folder, **changes):
    asked = study(**changes)
    found = results_of(asked, lines, folder)
    return found, {part[0]: part for part in across_tasks(asked, found, folder)}


def test_all_tasks_side_by_side(lines, tmp_path):
    found, parts = tables(lines, tmp_path)
    _, head, rows, _ = parts["All tasks, nano"]
    assert head == ["arm", "a", "b", "mean", "SD a", "SD b", "mean SD"]
    for row in rows:
        mine = {r.task: r for r in found if r.arm == row[0]}
        assert row[1:3] == [f"{mine[t].score:.1f}" for t in TASKS]
        assert float(row[3]) == pytest.approx(sum(r.score for r in mine.values()) / 2, abs=0.06)
        assert row[4:6] == [f"{mine[t].spread:.1f}" for t in TASKS]


def test_a_mean_needs_every_task(lines, tmp_path):
    part = [line for line in lines if (line["arm"], line["task"]) != ("weak", "b")]
    _, parts = tables(part, tmp_path)
    rows = {row[0]: row for row in parts["All tasks, nano"][2]}
    assert rows["weak"][2:4] == ["–", "–"] and rows["strong"][3] != "–"


def test_contrasts_pool_the_tasks(lines, tmp_path):
    found, parts = tables(lines, tmp_path)
    (strong, same) = parts["Contrasts, nano"][2]
    mean = {n: sum(r.score for r in found if r.arm == n) / len(TASKS) for n in SHARE}
    assert strong[:2] == ["strong − weak", "2"]
    assert float(strong[2]) == pytest.approx(mean["strong"] - mean["weak"], abs=0.06)
    assert float(strong[4]) < 0.001
    assert same[2:] == ["+0.0", "+0.0 to +0.0", "1.0000"]


@pytest.mark.parametrize("once", [False, True])
def test_one_seed_stands_for_all_where_no_seed_changes_it(lines, tmp_path, once):
    """An arm of which one seed is finished isn't such; its others are still to come."""
    part = [line for line in lines if line["arm"] == "strong" or line["seed"] == 0]
    rows = tuple(dataclasses.replace(arm(name), once=once and name == "weak") for name in SHARE)
    asked = dataclasses.replace(study(), rows=rows, reference="weak")
    found = results_of(asked, part, tmp_path)
    (strong, _) = across_tasks(asked, found, tmp_path)[1][2]
    score = {(r.arm, r.task): r.score if once else r.scores[0] for r in found}
    wanted = {task: score["strong", task] - score["weak", task] for task in TASKS}
    assert float(strong[2]) == pytest.approx(sum(wanted.values()) / len(TASKS), abs=0.06)
    for r in found:
        if r.arm == "strong":
            assert r.difference == pytest.approx(wanted[r.task])


def test_scores_that_were_computed_in_several_ways_are_told(lines, tmp_path):
    found, _ = tables(lines, tmp_path)
    assert "several ways" not in legend(study(), found)
    lines[0]["signature"] = "exact|pintern-2"
    found, _ = tables(lines, tmp_path)
    told = "Scores on a were computed in several ways: 5 by exact|pintern-1; 1 by exact|pintern-2."
    assert legend(study(), found).endswith(told)


def test_transfer_leaves_the_own_task_out_of_the_mean(lines, tmp_path):
    found, parts = tables(lines, tmp_path)
    title = "strong, 0 of the target's examples"
    matrix = {"a": {"a": 90, "b": 11}, "b": {"a": 11, "b": 90}}
    assert transfers_of(study(), found) == {title: matrix}
    _, head, rows, below = parts[f"Transfer, nano: {title}"]
    assert head == ["trained on", "a", "b"]
    assert rows[-1] == ["mean of other sources", "11.0", "11.0"]
    assert below == "From another task: 11.0 on average."


def test_transfer_to_a_task_that_a_study_gained_later_is_left_open(lines, tmp_path):
    first, *others = [line for line in lines if line["measures"] and line["task"] == "a"]
    for line in (first, *others):
        line["measures"]["transfer"]["scores"] |= {"c": 5.0}
    found, parts = tables(lines, tmp_path)
    _, head, rows, _ = parts["Transfer, nano: strong, 0 of the target's examples"]
    assert head == ["trained on", "a", "b", "c"]
    assert [row[3] for row in rows] == ["5.0", "–", "5.0"]
    del first["measures"]["transfer"]["scores"]["c"]  # of one seed
    assert "c" not in transfers_of(study(), found)["strong, 0 of the target's examples"]["a"]


def test_transfer_to_a_task_that_a_study_has_changed_since_is_left_out(lines, tmp_path):
    asked = study()
    for line in lines:
        if line["measures"]:
            line["measures"]["transfer"]["configs"] = {
                cell.task: fingerprint(cell.arm.config)
                for cell in cells_of(asked)
                if (cell.arm.name, cell.seed) == (line["arm"], line["seed"])
            }
    changed = dataclasses.replace(asked, tasks={"a": {}, "b": {"task.max_test": 5}})
    title = "strong, 0 of the target's examples"
    found = results_of(changed, lines, tmp_path)
    assert transfers_of(asked, found)[title]["a"] == {"a": 90, "b": 11}
    assert transfers_of(changed, found)[title]["a"] == {"a": 90}


def test_one_task_has_its_contrasts_alone(lines, tmp_path):
    found, parts = tables([line for line in lines if line["task"] == "a"], tmp_path)
    assert list(parts) == ["Contrasts, nano"]
    mean = {r.arm: r.score for r in found}
    strong = parts["Contrasts, nano"][2][0]
    assert strong[1] == "1"
    assert float(strong[2]) == pytest.approx(mean["strong"] - mean["weak"], abs=0.06)
    _, parts = tables([line for line in lines if line["task"] == "a"], tmp_path, contrasts=())
    assert not parts


def test_a_contrast_of_an_arm_that_is_not_there():
    with pytest.raises(UserError, match="strange"):
        cells_of(study(contrasts=(("strong", "strange"),)))


def test_a_slice_may_have_a_dot_in_its_name():
    line = {"slices": {"v1.0": 50.0, "v1": 25.0}, "score": 3.0}
    for path, found in (("slices.v1.0", 50.0), ("slices.v1", 25.0), ("score", 3.0)):
        assert dig(line, path) == found
    for path in ("slices.v2.0", "slices.v1.0.x", "score.x", "slices.v1.1"):
        assert dig(line, path) is None


def test_answers_may_hold_what_other_programs_take_for_line_ends(tmp_path):
    answers = [{"query": "a\n", "prediction": "one\u2028two\x85three\x1cfour"}, {"query": "b"}]
    write_lines(tmp_path / "predictions.jsonl", answers)
    line = {"cell": "c", "predictions": "predictions.jsonl"}
    assert read_predictions(line, tmp_path) == answers
