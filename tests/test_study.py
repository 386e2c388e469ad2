"""The study's runner: resumed, shared, killed, changed; its ledger, tables and page."""

import csv
import dataclasses
import io
import json
import os
import signal
import time

import pytest

from pintern.errors import UserError
from pintern.locks import owner, try_lock
from pintern.report.accounting import PriceList
from pintern.studies import report, runner, tables
from pintern.studies.diagnostics import Transfer
from pintern.studies.folder import claim_study, finished_lines, states
from pintern.studies.ledger import Ledger
from pintern.studies.load import load_study
from pintern.studies.report import write_report
from pintern.studies.results import results_of
from pintern.studies.runner import run_study
from pintern.studies.study import Lines, Row, Study, cells_of
from pintern.training.loop import train
from pintern.training.population import train_population
from tests import tiny
from tests.study_files import study_file

DEADLINE = 240  # seconds


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole study, run once."""
    root = tmp_path_factory.mktemp("study")
    study = load_study(str(study_file(root / "file")))
    assert run_study(study, root / "runs")
    return study, root / "runs"


def test_every_cell_is_a_run_folder_with_a_line(finished):
    study, workdir = finished
    cells = cells_of(study)
    # Two arms that no seed changes, two at two seeds.
    assert len(cells) == 2 + 2 * 2
    lines = Ledger(workdir).lines()
    assert set(lines) == {cell.name for cell in cells}
    for cell in cells:
        line = lines[cell.name]
        assert (workdir / "cells" / cell.name / "config.json").exists()
        answers = tiny.lines(workdir / line["predictions"])
        assert line["score"] == pytest.approx(sum(a["score"] for a in answers) / len(answers))
        assert line["fingerprint"] == cell.fingerprint
        assert line["tokens"]["prompt"] > 0 and line["cost_per_1000_requests"] > 0
        assert (line["training_seconds"] > 0) == cell.arm.trained
        assert line["versions"]["jax"]
    assert set(states(study, workdir).values()) == {"done"}


def test_a_finished_study_runs_nothing_again(finished, monkeypatch):
    study, workdir = finished
    monkeypatch.setattr(runner, "run_arm", lambda *_: pytest.fail("ran a finished cell"))
    before = (workdir / "ledger.jsonl").read_bytes()
    assert run_study(study, workdir)
    assert (workdir / "ledger.jsonl").read_bytes() == before


def test_a_cell_equals_a_run_of_its_own(finished, tmp_path):
    study, workdir = finished
    cell = next(cell for cell in cells_of(study) if cell.name == "store/nano/ours/seed-1")
    assert train(cell.arm.config, tmp_path / "alone")
    alone = (tmp_path / "alone" / "metrics.jsonl").read_bytes()
    assert (workdir / "cells" / cell.name / "metrics.jsonl").read_bytes() == alone


def test_stage_ends_are_kept_and_lie_on_the_way(finished):
    _, workdir = finished
    folder = workdir / "cells/store/nano/ours/seed-0"
    # Two stages over eight steps: the first ends at step 4, where there is a checkpoint too.
    assert [path.name for path in (folder / "stages").iterdir() if path.name.isdigit()] == ["4"]
    assert not (workdir / "cells/store/nano/direct/seed-0/stages").exists()


def test_only_runs_what_matches_and_refuses_what_matches_nothing(tmp_path):
    study = load_study(str(study_file(tmp_path / "file")))
    assert run_study(study, tmp_path / "runs", only=["*/query-only/*"])
    found = states(study, tmp_path / "runs")
    assert [name for name, state in found.items() if state == "done"] == [
        "store/nano/query-only/seed-0"
    ]
    assert set(found.values()) == {"done", "new"}
    with pytest.raises(UserError, match="seed-9"):
        run_study(study, tmp_path / "runs", only=["*/seed-9"])
    with pytest.raises(UserError, match="No cell matches 'zzz'"):
        run_study(study, tmp_path / "runs", redo=["zzz"])


def test_changed_cells_are_refused_then_redone_when_told(tmp_path):
    workdir = tmp_path / "runs"
    only = ["*/direct/seed-0", "*/query-only/*"]
    small = {"arms": ["query only", "direct"]}
    study = load_study(str(study_file(tmp_path / "file", **small)))
    assert run_study(study, workdir, only=only)
    first = Ledger(workdir).lines()

    changes = {"train__learning_rate": 1e-2}
    changed = load_study(str(study_file(tmp_path / "file", changes=changes, **small)))
    with pytest.raises(UserError, match=r"learning_rate: 0\.002 → 0\.01.*--redo"):
        run_study(changed, workdir, only=only)
    assert Ledger(workdir).lines() == first
    assert states(changed, workdir)["store/nano/direct/seed-0"] == "changed"
    with pytest.raises(UserError, match="No cell"):
        write_report(changed, workdir, command="")
    # Cells that aren't named stay refused.
    with pytest.raises(UserError, match="query-only"):
        run_study(changed, workdir, only=only, redo=["*/direct/*"])

    assert run_study(changed, workdir, only=only, redo=["*"])
    lines = Ledger(workdir).lines()
    for name, line in lines.items():
        assert line["fingerprint"] != first[name]["fingerprint"]
    old = workdir / "replaced/store/nano/direct/seed-0/1/config.json"
    assert json.loads(old.read_text())["train"]["learning_rate"] == 2e-3
    # Told again, nothing has changed, and nothing is redone.
    before = (workdir / "ledger.jsonl").read_bytes()
    assert run_study(changed, workdir, only=only, redo=["*"])
    assert (workdir / "ledger.jsonl").read_bytes() == before


def test_another_measure_keeps_the_training(tmp_path, monkeypatch):
    workdir, only = tmp_path / "runs", ["*/ours/seed-0"]
    few = {"arms": ["ours"], "reference": ""}
    assert run_study(load_study(str(study_file(tmp_path / "a", **few))), workdir, only=only)
    weights = workdir / "cells/store/nano/ours/seed-0/checkpoints/8/_CHECKPOINT_METADATA"
    saved = weights.stat().st_mtime_ns
    more = load_study(str(study_file(tmp_path / "b", measures=["kl"], **few)))
    with pytest.raises(UserError, match="measures"):
        run_study(more, workdir, only=only)
    assert run_study(more, workdir, only=only, redo=["*"])
    line = Ledger(workdir).lines()["store/nano/ours/seed-0"]
    assert line["measures"]["kl"]["final"] > 0
    assert weights.stat().st_mtime_ns == saved
    assert not (workdir / "replaced").exists()


def test_a_failed_cell_does_not_stop_the_others(tmp_path):
    tasks = {"broken": {"task.train": str(tmp_path / "none.jsonl")}, "store": {}}
    study = load_study(
        str(study_file(tmp_path / "file", tasks=tasks, arms=["query only"], reference=""))
    )
    with pytest.raises(UserError, match=r"1 of 2 cells failed.*none\.jsonl"):
        run_study(study, tmp_path / "runs")
    assert set(Ledger(tmp_path / "runs").lines()) == {"store/nano/query-only/seed-0"}


def test_a_cell_that_failed_is_run_as_the_study_has_it_now(tmp_path):
    workdir, few = tmp_path / "runs", {"arms": ["direct"], "seeds": [0]}
    wrong = {"adapter__init_from": str(tmp_path / "none")}
    broken = load_study(str(study_file(tmp_path / "broken", changes=wrong, **few)))
    with pytest.raises(UserError, match="No adapter directory"):
        run_study(broken, workdir)
    mended = load_study(str(study_file(tmp_path / "mended", **few)))
    name = "store/nano/direct/seed-0"
    assert states(mended, workdir) == {name: "new"}
    assert run_study(mended, workdir)
    assert (workdir / "replaced" / name / "1" / "config.json").exists()
    assert states(mended, workdir) == {name: "done"}


def test_a_begun_cell_that_has_changed_is_refused_then_redone_when_told(tmp_path):
    workdir, few = tmp_path / "runs", {"arms": ["direct"], "seeds": [0]}
    study = load_study(str(study_file(tmp_path / "file", **few)))
    (cell,) = cells_of(study)
    half = cell.arm.config.copy_and_resolve_references()
    half.train.steps = 4
    claim_study(study, workdir)
    train(half, workdir / "cells" / cell.name)  # as if stopped, of another configuration
    with pytest.raises(UserError, match=r"steps: 4 → 8.*--redo"):
        run_study(study, workdir)
    assert states(study, workdir) == {cell.name: "changed"}
    assert run_study(study, workdir, redo=["*"])
    assert (workdir / "replaced" / cell.name / "1" / "checkpoints" / "4").is_dir()
    assert states(study, workdir) == {cell.name: "done"}


def test_a_ledger_line_cut_short_is_run_again_and_harms_no_other(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.append({"cell": "a", "fingerprint": "1"})
    with ledger.path.open("ab") as file:
        file.write('{"cell": "b", "arm": "at τ'.encode()[:-1])
    assert set(ledger.lines()) == {"a"}
    ledger.append({"cell": "c", "fingerprint": "3"})
    assert set(ledger.lines()) == {"a", "c"}
    ledger.drop("a")
    assert set(ledger.lines()) == {"c"}


def test_a_lock_is_one_owners_at_a_time(tmp_path):
    path = tmp_path / "deep" / "cell"
    assert owner(path) == ""
    with try_lock(path) as mine:
        assert mine
        assert owner(path).startswith(f"{os.getpid()} on ")
        with try_lock(path) as second:
            assert not second
    assert owner(path) == ""
    with try_lock(path) as mine:
        assert mine


def _wait_for(condition, process):
    until = time.monotonic() + DEADLINE
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.05)


def test_two_processes_share_a_grid_and_one_killed_loses_its_cell_alone(tmp_path):
    """One is killed while training; the other takes that cell over and ends with all of them."""
    workdir = tmp_path / "runs"
    # Long enough to be caught in the middle of it.
    changes = {"train__steps": 200, "checkpoint__every": 20}
    path = study_file(tmp_path / "file", changes=changes, arms=["direct", "ours"], seeds=[0])
    command = ("-m", "pintern.study", f"--study={path}", f"--workdir={workdir}")
    first = tiny.start(*command)
    metrics = workdir / "cells/store/nano/direct/seed-0/metrics.jsonl"
    kept = workdir / "cells/store/nano/direct/seed-0/checkpoints/20"
    _wait_for(lambda: metrics.exists() and kept.exists(), first)
    first.send_signal(signal.SIGSTOP)  # it has its cell, and gets no further
    second = tiny.start(*command)
    other = workdir / "cells/store/nano/ours/seed-0/config.json"
    try:
        study = load_study(str(path))
        assert states(study, workdir)["store/nano/direct/seed-0"] == (
            f"running ({first.pid} on {os.uname().nodename})"
        )
        _wait_for(other.exists, second)
        assert not Ledger(workdir).lines()  # the first one's cell was left to it
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    told, errors = second.communicate(timeout=DEADLINE)
    assert second.returncode == 0, errors
    # Its runs' tables are told beside the progress, and not before the study's own.
    assert "asked τ" in errors and "asked τ" not in told and "| score" in told
    lines = [json.loads(text) for text in (workdir / "ledger.jsonl").read_text().splitlines()]
    assert sorted(line["cell"] for line in lines) == [
        "store/nano/direct/seed-0",
        "store/nano/ours/seed-0",
    ]
    # The second process took the killed one's cell over, from its checkpoint on.
    assert "direct/seed-0" in errors
    assert (workdir / "report" / "index.html").exists()


def test_soft_prompts_of_a_grid_train_as_one_population(tmp_path, monkeypatch):
    """Two seeds × two rates: one program, four ordinary cells, the same as when trained alone."""
    workdir = tmp_path / "runs"
    arms = ["prompt tuning at 0.01", "prompt tuning at 0.03", "direct"]
    study = load_study(str(study_file(tmp_path / "file", arms=arms)))
    populations = []

    def spy(configs, workdirs):
        populations.append([path.relative_to(workdir / "cells").as_posix() for path in workdirs])
        return train_population(configs, workdirs)

    monkeypatch.setattr(runner, "train_population", spy)
    assert run_study(study, workdir)
    tuned = [cell for cell in cells_of(study) if cell.arm.name != "direct"]
    assert populations == [[cell.name for cell in tuned]]
    lines = Ledger(workdir).lines()
    assert set(lines) == {cell.name for cell in cells_of(study)}

    cell = tuned[-1]
    train(cell.arm.config, tmp_path / "alone")
    losses = [
        [row["loss"] for row in tiny.lines(folder / "metrics.jsonl")]
        for folder in (tmp_path / "alone", workdir / "cells" / cell.name)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)

    # One is lost after the training: it is scored again with those that it was trained with.
    Ledger(workdir).drop(cell.name)
    weights = workdir / "cells" / cell.name / "checkpoints" / "8" / "_CHECKPOINT_METADATA"
    saved = weights.stat().st_mtime_ns
    assert run_study(study, workdir)
    assert populations[1] == populations[0]
    assert weights.stat().st_mtime_ns == saved
    assert Ledger(workdir).lines()[cell.name]["score"] == lines[cell.name]["score"]


def test_a_study_can_train_its_soft_prompts_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "train_population", lambda *_: pytest.fail("a population"))
    arms = ["prompt tuning at 0.01"]
    study = load_study(str(study_file(tmp_path / "file", arms=arms, reference="")))
    assert run_study(dataclasses.replace(study, population=1), tmp_path / "runs")


def test_table_and_csv_say_the_same(finished):
    study, workdir = finished
    text, page = write_report(study, workdir, command="python -m pintern.study")
    assert (page.parent / "table.md").read_text() == text
    rows = list(csv.DictReader(io.StringIO((page.parent / "table.csv").read_text())))
    assert [row["arm"] for row in rows] == ["query only", "prompted", "direct", "ours"]
    lines = Ledger(workdir).lines()
    for row in rows:
        scores = [line["score"] for line in lines.values() if line["arm"] == row["arm"]]
        assert float(row["score"]) == pytest.approx(sum(scores) / len(scores))
        assert f"{float(row['score']):.1f}" in text
        assert float(row["low"]) <= float(row["score"]) <= float(row["high"])
    by_arm = {row["arm"]: row for row in rows}
    assert by_arm["direct"]["p_holm"] == "" and by_arm["ours"]["p_holm"] != ""
    assert by_arm["query only"]["sd_over_seeds"] == "" != by_arm["ours"]["sd_over_seeds"]
    assert "a paper | table 1" in text and "78.1" in text
    assert "not finished" not in text


def test_a_factor_named_like_a_column_stands_beside_it(finished):
    study, workdir = finished
    made = [line for _, line in finished_lines(study, workdir).values()]
    made = [line | {"factors": {"score": -3, "arm": "x", "stages": 2}} for line in made]
    results = results_of(study, made, workdir)
    _, head, rows = tables.table(study, results)
    assert head[:4] == ["arm", "score (factor)", "arm (factor)", "stages"]
    assert head.count("score") == 1
    assert [row[1] for row in rows] == ["-3"] * len(results)
    for row, result in zip(
        csv.DictReader(io.StringIO(tables.to_csv(results))), results, strict=True
    ):
        assert (row["arm"], row["arm (factor)"]) == (result.arm, "x")
        assert (float(row["score"]), row["score (factor)"]) == (result.score, "-3")


def test_the_page_has_the_contrasts_too(finished):
    study, workdir = finished
    asked = dataclasses.replace(study, contrasts=(("ours", "direct"),))
    text, page = write_report(asked, workdir, command="")
    for told in ("Contrasts, nano", "ours − direct"):
        assert told in text and told in page.read_text()


def test_a_report_has_the_prices_and_the_factors_that_the_study_has_now(finished):
    study, workdir = finished
    dear = PriceList(input=30.0, cached_input=3.0, output=150.0)
    rows = tuple(dataclasses.replace(row, factors={"size": 7}) for row in study.rows)
    changed = dataclasses.replace(study, prices=dear, usd_per_hour=1.0, rows=rows, lines=())
    before, after = (
        {name: line for name, (_, line) in finished_lines(each, workdir).items()}
        for each in (study, changed)
    )
    assert before == Ledger(workdir).lines()
    for name, line in after.items():
        for field in ("cost_per_1000_requests", "training_cost"):
            assert line[field] == pytest.approx(10 * before[name][field])
        assert line["factors"] == {"size": 7}


def test_plots_of_one_caption_are_all_drawn(finished):
    study, workdir = finished
    lines = (Lines("stages"), Lines("stages", by="stages"))
    _, page = write_report(dataclasses.replace(study, lines=lines), workdir, command="")
    drawn = {path.name for path in page.parent.glob("*-lines-*.png")}
    assert drawn == {
        "store-nano-lines-score-stages--.png",
        "store-nano-lines-score-stages-stages.png",
    }
    assert page.read_text().count("<figcaption>score over stages") == len(lines)


def test_a_corpus_score_has_no_bounds_of_its_examples_in_the_plot(finished, monkeypatch, tmp_path):
    study, workdir = finished
    lines = [line for _, line in finished_lines(study, workdir).values()]
    means = results_of(study, lines, workdir)
    corpus = [dataclasses.replace(r, scores={s: v + 9 for s, v in r.scores.items()}) for r in means]
    drawn = []
    monkeypatch.setattr(report.plots, "plot_pareto", lambda points, *_: drawn.append(points))
    for results in (means, corpus):
        report._pictures(study, results, {}, tmp_path, "it")
    assert [p.interval for p in drawn[0]] == [r.interval for r in means]
    assert [p.interval for p in drawn[1]] == [None] * len(corpus)


def test_tables_say_what_is_not_finished(tmp_path):
    study = load_study(str(study_file(tmp_path / "file")))
    run_study(study, tmp_path / "runs", only=["*/query-only/*"])
    text, page = write_report(study, tmp_path / "runs", command="")
    assert "5 cells are not finished" in text
    assert "5 of 6 cells are not finished" in page.read_text()


def test_workdir_of_another_study_is_refused(finished, tmp_path):
    study, workdir = finished
    other = load_study(str(study_file(tmp_path / "file")) + ":-other")
    with pytest.raises(UserError, match="'tiny'"):
        run_study(other, workdir)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thing").touch()
    for refused in (run_study, states):
        with pytest.raises(UserError, match="not empty"):
            refused(study, tmp_path / "full")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "study.json").write_text("{")
    with pytest.raises(UserError, match=r"study\.json is not valid JSON"):
        states(study, tmp_path / "broken")


def test_studies_that_make_no_grid_are_refused(tmp_path):
    study = load_study(str(study_file(tmp_path / "file")))
    row = study.rows[0]
    for changes, message in (
        ({"rows": ()}, "no rows"),
        ({"rows": (row, row)}, "two cells named"),
        ({"reference": "nobody"}, "nobody"),
        ({"tasks": {"t": {"train.stepz": 3}}}, "stepz"),
        ({"tasks": {"t": {"trainer.steps": 3}}}, "trainer.steps"),
        ({"tasks": {"t": {"train.steps.x": 3}}}, r"config\.train\.steps\.x can't be set to 3"),
        ({"tasks": {"t": {"train.steps.x.y": 3}}}, r"config\.train\.steps\.x\.y is not a field"),
        ({"tasks": {"t": {"train.steps": "many"}}}, r"config\.train\.steps can't be set to 'many'"),
        ({"tasks": {"t": {"seed": 3}}}, "'t' sets config.seed"),
        ({"models": {"m": {"seed": 3}}}, "'m' sets config.seed"),
        ({"contrasts": (("direct",),)}, "a contrast is of two arms"),
        ({"lines": (Lines(x="stage"),)}, "lines over 'stage'.*There are: stages"),
        ({"lines": (Lines(x="stages", by="pace"),)}, "lines over 'pace'"),
        ({"seeds": 3}, r"has seeds=3, which is no tuple.*seeds=\(ITEM,\)"),
        ({"seeds": (0, "1")}, "has the seed '1'"),
        ({"notes": "one"}, "has notes='one', which is no tuple"),
        ({"measures": Transfer()}, r"has measures=Transfer\(.*which is no tuple"),
        ({"rows": (Row(row.make, measures=Transfer()),)}, r"row of study 'tiny' has measures=Tr"),
        (
            {"rows": (Row(row.make, measures=(Transfer(), Transfer(shots=1))),)},
            r"two measures of one name \(transfer, transfer\)",
        ),
    ):
        with pytest.raises(UserError, match=message):
            cells_of(dataclasses.replace(study, **changes))


def test_files_that_hold_no_study_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_study(str(tmp_path / "none.py"))
    for text, message in (
        ("x = 1", "no get_study"),
        ("def get_study(): return 3", "returned a int"),
        ("def get_study(:", "line 1"),
        ("import nothing_like_it", "nothing_like_it"),
        ("\ndef get_study(): return rows", r"study\.py, line 2: NameError: name 'rows'"),
    ):
        path = tmp_path / "study.py"
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            load_study(str(path))
    with pytest.raises(UserError, match=r"study\.py:arg: TypeError: get_study\(\) takes 0"):
        load_study(f"{path}:arg")


def test_once_rows_run_at_the_first_seed(finished):
    study, _ = finished
    row = Row(study.rows[0].make)
    both = Study("s", "q", (row, Row(study.rows[1].make, once=True)), seeds=(3, 4))
    assert [cell.seed for cell in cells_of(both)] == [3, 3, 4]


def test_list_and_errors_at_the_command_line(finished, tmp_path):
    _, workdir = finished
    path = workdir.parent / "file" / "study.py"
    code, out, _ = tiny.run(
        "-m", "pintern.study", f"--study={path}", f"--workdir={workdir}", "--list"
    )
    assert code == 0
    assert out.splitlines()[0].split() == ["done", "store/nano/query-only/seed-0"]
    assert len(out.splitlines()) == 6
    code, out, err = tiny.run(
        *("-m", "pintern.study", f"--study={path}", f"--workdir={workdir}"),
        *("--list", "--redo=zzz"),
    )
    assert (code, out) == (2, "") and "--redo has no use beside it" in err
    code, _, err = tiny.run(
        "-m", "pintern.study", f"--study={tmp_path}/none.py", f"--workdir={workdir}"
    )
    assert code == 2 and "no such file" in err and "Traceback" not in err
