"""The study files that come with the project: their cells, and what stands beside them."""

from pathlib import Path

import pytest

from experiments.arms import ipt, prompt_tuning
from pintern.report.accounting import PAPER
from pintern.studies.load import load_study
from pintern.studies.study import cells_of

FOLDER = Path(__file__).parents[1] / "experiments" / "studies"
# Cells that a study is meant to have; a row that nobody meant to add is seen here.
CELLS = {
    # 13 arms × 3 tasks × 3 models × 3 seeds
    "promptintern_main": 351,
    # 9 arms that train × 3 seeds, 4 that don't
    "promptintern_main_reduced": 31,
    # 1 + 4 shapes × 4 stages + 2 adaptive + 3 parts + 4 rates + direct, × 3 seeds, and 2 prompts
    "schedules": 83,
    # 1 + 6 falls + 3 parts + 3 rates + direct, likewise
    "schedules_reduced": 44,
    "diagnostics": 20,
}


@pytest.mark.parametrize("name", CELLS)
def test_every_cell_has_a_valid_config_and_the_studys_arms_are_there(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # other companies are written below the working folder
    study = load_study(str(FOLDER / f"{name}.py"))
    cells = cells_of(study)
    assert len(cells) == CELLS[name]
    assert len({cell.fingerprint for cell in cells}) == len(cells)
    assert study.question and study.notes
    assert len(study.seeds) >= 3
    # Arms are compared at equal optimizer steps.
    for task in study.tasks:
        steps = {c.arm.config.train.steps for c in cells if c.task == task and c.arm.trained}
        assert len(steps) == 1


def test_the_main_table_is_ten_epochs_and_soft_prompts_have_their_own_rate():
    study = load_study(str(FOLDER / "promptintern_main.py"))
    soft = {"prompt tuning": prompt_tuning.get_config(), "IPT": ipt.get_config()}
    for cell in cells_of(study):
        config = cell.arm.config
        epochs = config.train.steps * config.train.batch_rows / config.task.max_train
        assert epochs == pytest.approx(10, rel=0.01)
        own = soft.get(cell.arm.name)
        assert config.train.learning_rate == (own.train.learning_rate if own else 5e-5)


def test_wikisql_is_added_where_its_folder_is_given():
    study = load_study(f"{FOLDER / 'promptintern_main_reduced.py'}:somewhere")
    assert list(study.tasks) == ["company", "WikiSQL-lite"]
    assert study.tasks["WikiSQL-lite"]["task.data"] == "somewhere"


def test_published_figures_are_those_that_were_read():
    """Only what METHODS marks as read in a public source; the headline is the report's own."""
    study = load_study(str(FOLDER / "promptintern_main_reduced.py"))
    (paper,) = study.paper
    assert paper.rows["PromptIntern"] == (78.1, 81.4, 70.5)
    assert f"{100 * PAPER['cost_saving']:.1f} %" in paper.note
    assert f"{PAPER['speedup']}×" in paper.note
