"""Small companies: the same files each time, answers that hold; the studies that use them."""

import importlib
import sqlite3
from pathlib import Path

import pytest

from experiments.arms import prompt_tuning
from experiments.companies import task as companies
from experiments.company.schema import draws_on
from experiments.ipt import variance
from experiments.studies import ipt, ipt_reduced
from pintern.config import default_config, differences, validate
from pintern.evaluation.metrics import score_predictions
from pintern.studies.study import cells_of, lay_over
from pintern.tasks import load_task

NUMBERS = range(len(companies.NAMES))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("companies")


@pytest.fixture(scope="module")
def folders(root) -> list[Path]:
    return [companies.company_folder(n, root) for n in NUMBERS]


def loaded(folder: Path, template: str = "template.txt"):
    config = default_config()
    lay_over(config, companies.fields_of(folder, template))
    return load_task(validate(config))


def test_the_same_number_gives_the_same_files(folders, tmp_path):
    for number, folder in zip(NUMBERS, folders, strict=True):
        again = companies.company_folder(number, tmp_path)
        assert again.name == folder.name
        for file in sorted(folder.iterdir()):
            assert (again / file.name).read_bytes() == file.read_bytes()


def test_a_folder_that_is_there_is_left_alone(folders, root):
    before = [(f, f.stat().st_mtime_ns) for folder in folders for f in folder.iterdir()]
    for number in NUMBERS:
        assert companies.company_folder(number, root) in folders
    assert [(f, f.stat().st_mtime_ns) for f, _ in before] == before
    assert set(root.iterdir()) == set(folders)


def test_companies_differ(folders):
    for file in ("template.txt", "partial.txt", "train.jsonl", "test.jsonl", "company.sqlite"):
        assert len({(folder / file).read_bytes() for folder in folders}) == len(folders)


def test_gold_answers_score_all(folders):
    for folder in folders:
        task = loaded(folder)
        golds = [example.completion for example in task.test]
        assert len(golds) == companies.TEST
        assert score_predictions("sql", golds, golds, database=task.database).value == 100.0


def test_no_answer_of_the_test_is_shown(folders):
    for folder in folders:
        task = loaded(folder)
        assert len(task.train) == companies.TRAIN
        assert not {e.completion for e in task.train} & {e.completion for e in task.test}
        asked = [e.query for e in task.train + task.test]
        assert len(set(asked)) == len(asked)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_partial_template_leaves_to_the_pairs_what_it_does_not_tell(number):
    task = companies.make_company(number)
    partial = companies.partial_template(task.schema)
    assert set(partial.splitlines()) - set(task.template.splitlines()) == {
        line for line in partial.splitlines() if line.startswith("Table ")
    }
    shown = frozenset().union(*(draws_on(question, task.schema) for question in task.train))
    for table in task.schema.tables:
        told = [f"{c.word} is {c.code}" in partial for c in table.columns]
        hidden = len(table.columns) - companies.TOLD
        assert told == [True] * companies.TOLD + [False] * hidden
        assert {c.code for c in table.columns} <= shown
        assert not any(f"Metric {name}" in partial for name, _ in table.metrics)


def test_rows_are_as_the_schema_says(folders):
    for number, folder in zip(NUMBERS, folders, strict=True):
        schema = companies.make_company(number).schema
        database = sqlite3.connect(f"file:{folder / 'company.sqlite'}?mode=ro", uri=True)
        for child, parent, key in schema.joins:
            a, b = schema.tables[child].code, schema.tables[parent].code
            (loose,) = database.execute(
                f"SELECT COUNT(*) FROM {a} WHERE {key} NOT IN (SELECT {key} FROM {b})"
            ).fetchone()
            assert loose == 0
        for table in schema.tables:
            for column in table.of_kind("date"):
                (low, high) = database.execute(
                    f"SELECT MIN({column.code}), MAX({column.code}) FROM {table.code}"
                ).fetchone()
                assert len(str(low)) == len(str(high)) == len(schema.date(2020))
        database.close()


def test_reduced_study(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    cells = cells_of(ipt_reduced.get_study())
    assert {cell.task for cell in cells} == set(companies.NAMES)
    trained = [cell for cell in cells if cell.arm.trained]
    assert len(trained) == 6 * 5 * 3
    for cell in trained:
        fields = cell.arm.config
        assert fields.adapter.targets == () and fields.adapter.soft_prompt in (8, 25)
        # What it was trained behind is what it is asked behind.
        assert fields.curriculum.shots == (fields.eval.shots,)
        assert fields.curriculum.keep_rates == (fields.eval.keep_rate,)
        assert fields.eval.shots == ("IPT" in cell.arm.name)
    for cell in cells:
        assert Path(cell.arm.config.task.template).name == "partial.txt"


def test_full_size_study():
    study = ipt.get_study("data")
    cells = cells_of(study)
    assert len(cells) == 7 * 5 * 3 * 3
    for cell in cells:
        fields = cell.arm.config
        assert cell.arm.trained == bool(fields.adapter.soft_prompt)
        if cell.arm.trained:
            assert f"P={fields.adapter.soft_prompt}" in cell.arm.name
            assert fields.curriculum.shots == (fields.eval.shots,)
        assert (fields.eval.shots == 0) == cell.arm.name.startswith("PT")


@pytest.mark.parametrize("kind", ipt.NEW_TOKENS)
def test_a_config_of_the_ipt_folder_is_the_studys(kind):
    config = importlib.import_module(f"experiments.ipt.{kind}").get_config()
    (cell,) = [
        each
        for each in cells_of(ipt.get_study())
        if each.name == f"{kind}/bloom-1.1b/ipt-p-25/seed-0"
    ]
    fields = {told.partition(":")[0] for told in differences(cell.arm.config, config)}
    assert fields <= {"name", "task.data", "eval.max_new_tokens"}


def test_soft_prompts_learn_at_a_rate_of_their_own_where_none_is_varied():
    assert (
        variance.get_config().train.learning_rate == prompt_tuning.get_config().train.learning_rate
    )
