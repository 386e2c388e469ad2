"""Public sets of text tasks: what a row becomes, whose split it is, and what is refused."""

import importlib
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from test_sources import prepare_tfds

from pintern.config import default_config, validate
from pintern.errors import UserError
from pintern.evaluation.metrics import score_predictions
from pintern.schedules import curriculum_of
from pintern.tasks import LOADERS, load_task
from pintern.tasks.dart import dart_task
from pintern.tasks.logic2text import logic2text_task
from pintern.tasks.mtop import mtop_task
from pintern.tasks.nl2bash import nl2bash_task
from pintern.tasks.nl2formula import column_letters, nl2formula_task, show_table
from pintern.tasks.totto import linearise, totto_task

DATA = Path(__file__).parents[1] / ".." / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="../shared/data is absent")

MTOP = {"utterance": "call Ann ", "logical_form": "[IN:CREATE_CALL  [SL:CONTACT Ann ] ]"}
DART = {
    "tripleset": [["Bay", "AREA", "12 km"], ["Bay", "STATE", "Kent"]],
    "subtree_was_extended": False,
    "annotations": [
        {"source": "s", "text": "Bay in Kent has 12 km."},
        {"source": "s", "text": "Kent has a Bay of 12 km."},
    ],
}
LOGIC = {
    "topic": "1990 cup",
    "wiki": "w",
    "action": "count",
    "sent": "three  clubs are from kent .",
    "logic_str": "eq { count { filter_eq { all_rows ; county ; kent } } ; 3 } = true",
    "table_header": ["club", "county"],
    "table_cont": [["a", "kent"]],
}
FORMULA = {
    "TableName": "t",
    "Table": [["Year", "Team"], *[[1990 + i, f"T{i}"] for i in range(8)]],
    "t5Formulas": [
        {"Question": "How many teams?", "Formula2": "COUNTA(B2:B9)", "Level": "easy"},
        {"Question": "Last year?", "Formula2": "MAX(A2:A9)", "Level": "Medium"},
    ],
}
BASH = {"nl": "list files", "bash": "ls -l"}


def cell(value, header=False, rows=1, columns=1):
    return {"value": value, "is_header": header, "row_span": rows, "column_span": columns}


def totto_row(number=1):
    return {
        "table": [
            [cell("Season", True, rows=2), cell("Games", True, columns=2)],
            [cell("home", True), cell("away", True)],
            [cell("2001", True), cell("3"), cell(str(number))],
        ],
        "table_page_title": "Kent FC",
        "table_section_title": "Results",
        "table_section_text": "",
        "highlighted_cells": [[2, 2]],
        "example_id": number,
        "overlap_subset": True,
        "sentence_annotations": [
            {"final_sentence": f"Kent had {number} away games in 2001."},
            {"final_sentence": f"In 2001 Kent played {number} away."},
        ],
    }


def write(folder, rows, *splits):
    for split in splits:
        (folder / f"{split}.json").write_text(json.dumps(rows))
    return str(folder)


TASKS = {
    "mtop": (mtop_task, MTOP),
    "dart": (dart_task, DART),
    "totto": (totto_task, totto_row()),
    "logic2text": (logic2text_task, LOGIC),
    "nl2formula": (nl2formula_task, FORMULA),
    "nl2bash": (nl2bash_task, BASH),
}


@pytest.mark.parametrize("kind", TASKS)
def test_gold_answers_score_full_by_the_tasks_own_metrics(tmp_path, kind):
    load, row = TASKS[kind]
    task = load(write(tmp_path, [row], "train", "dev", "test"), 0)
    assert task.name == kind
    answers = [example.completion for example in task.test]
    for metric in (task.metric, *task.further_metrics):
        scores = score_predictions(metric, answers, task.test, **task.metric_options)
        assert scores.per_example == pytest.approx([100.0] * len(answers))
        wrong = score_predictions(metric, [""] * len(answers), task.test, **task.metric_options)
        assert wrong.value < 1
    assert len({example.id for example in (*task.train, *task.test)}) == len(task.train + task.test)


@pytest.mark.parametrize("kind", TASKS)
def test_every_kind_is_known_to_the_config_and_its_field_names_are_checked(tmp_path, kind):
    load, row = TASKS[kind]
    config = default_config()
    config.task.kind = kind
    config.task.data = write(tmp_path, [row], "train", "dev", "test")
    config.task.max_test = 1
    assert len(load_task(validate(config)).test) == 1
    assert kind in LOADERS
    needed = {
        "mtop": "logical_form",
        "dart": "tripleset",
        "totto": "highlighted_cells",
        "logic2text": "logic_str",
        "nl2formula": "Table",
        "nl2bash": "bash",
    }[kind]
    write(tmp_path, [row, {k: v for k, v in row.items() if k != needed}], "train")
    with pytest.raises(UserError, match=rf"split train, row 2: field '{needed}' is missing\."):
        load(str(tmp_path), 0)


def test_papers_split_is_used_where_it_is_there(tmp_path):
    rows = [{**MTOP, "utterance": f"call {i}"} for i in range(12)]
    write(tmp_path, rows[:6], "train")
    write(tmp_path, rows[6:9], "dev")
    task = mtop_task(write(tmp_path, rows[9:], "test"), 0)
    assert [len(task.train), len(task.test)] == [6, 3]
    assert task.test[0].query == "call 9"
    assert "the papers' split: trained on train, judged on test" in task.note
    assert "train has 6 of the published 15,667 rows" in task.note
    (tmp_path / "test.json").unlink()
    task = mtop_task(str(tmp_path), 0)
    assert task.test[0].query == "call 6"
    assert "a substitute split" in task.note and "has no test: trained on train" in task.note


def test_without_train_the_test_file_is_learned_from(tmp_path):
    write(tmp_path, [MTOP], "test")
    write(tmp_path, [MTOP, {**MTOP, "utterance": "call Bob"}], "dev")
    task = mtop_task(str(tmp_path), 0)
    assert [len(task.train), len(task.test)] == [1, 2]
    assert "has no train: trained on test, judged on dev" in task.note
    assert "test queries that the source has in train as well: 1" in task.note
    assert "not comparable with published figures" in task.note


def test_of_one_file_a_fifth_is_held_out_by_the_seed(tmp_path):
    rows = [{**MTOP, "utterance": f"call {i}"} for i in range(20)]
    path = tmp_path / "mtop.json"
    path.write_text(json.dumps(rows))
    task = mtop_task(str(path), 3)
    assert [len(task.train), len(task.test)] == [16, 4]
    assert not {e.query for e in task.train} & {e.query for e in task.test}
    assert "has only all: a fifth of the distinct queries of all held out (seed 3)" in task.note
    assert mtop_task(str(path), 3) == task
    assert mtop_task(str(path), 4).test != task.test


def test_a_known_split_is_held_out_from_before_an_unknown_one(tmp_path):
    rows = [{**MTOP, "utterance": f"call {i}"} for i in range(20)]
    splits = {"extra": rows[:5], "validation": rows}
    saved = datasets.DatasetDict({k: datasets.Dataset.from_list(v) for k, v in splits.items()})
    saved.save_to_disk(str(tmp_path / "saved"))
    task = mtop_task(str(tmp_path / "saved"), 3)
    assert [len(task.train), len(task.test)] == [16, 4]
    assert "has only extra, dev: a fifth of the distinct queries of dev held out" in task.note


def test_dart_learns_each_text_and_is_judged_by_all(tmp_path):
    task = dart_task(write(tmp_path, [DART], "train", "test"), 0)
    assert [example.completion for example in task.train] == [
        annotation["text"] for annotation in DART["annotations"]
    ]
    assert [example.references for example in task.train] == [(), ()]
    (test,) = task.test
    assert test.query == "<H> Bay <R> AREA <T> 12 km <H> Bay <R> STATE <T> Kent"
    assert test.references == ("Bay in Kent has 12 km.", "Kent has a Bay of 12 km.")
    second = score_predictions(
        "bleu", ["Kent has a Bay of 12 km."], task.test, **task.metric_options
    )
    assert second.value == pytest.approx(100)


@pytest.mark.parametrize("field", ["annotations", "references"])
def test_dart_passes_over_an_empty_text_as_the_published_test_split_has_one(tmp_path, field):
    texts = ["", "Kent has a Bay of 12 km."]
    said = {"annotations": [{"text": text} for text in texts], "references": texts}
    row = {"tripleset": DART["tripleset"], field: said[field]}
    task = dart_task(write(tmp_path, [row], "train", "test"), 0)
    assert [example.completion for example in task.train] == texts[1:]
    assert task.test[0].references == tuple(texts[1:])


XML = """<?xml version='1.0' encoding='utf-8'?>
<benchmark><entries><entry category="MISC" eid="Id1" size="2">
<modifiedtripleset><mtriple>Bay | AREA | 12 km</mtriple>
<mtriple>Bay | STATE | Kent</mtriple></modifiedtripleset>
<lex comment="s" lid="Id1">Bay in Kent has 12 km.</lex><lex comment="s" lid="Id2"></lex>
<lex comment="s" lid="Id3">Kent has a Bay of 12 km.</lex></entry></entries></benchmark>"""


def test_dart_as_json_xml_and_tfds_is_the_same(tmp_path):
    import tensorflow_datasets as tfds

    one, two = tmp_path / "json", tmp_path / "xml"
    one.mkdir(), two.mkdir()
    expected = dart_task(write(one, [DART], "train", "test"), 0)
    for split in ("train", "test"):
        (two / f"dart-{split}.xml").write_text(XML)
    task = dart_task(str(two), 0)
    assert (task.train, task.test) == (expected.train, expected.test)
    # The features of gem/dart: triples are texts, train has a target, the others references.
    features = tfds.features.FeaturesDict(
        {
            "gem_id": np.str_,
            "dart_id": np.int32,
            "tripleset": tfds.features.Sequence(np.str_),
            "subtree_was_extended": np.bool_,
            "target": np.str_,
            "references": tfds.features.Sequence(np.str_),
        }
    )
    triples = [" | ".join(triple) for triple in DART["tripleset"]]
    texts = [annotation["text"] for annotation in DART["annotations"]]
    row = {"dart_id": 1, "tripleset": triples, "subtree_was_extended": False}
    train = [
        {**row, "gem_id": f"dart-train-{i}", "target": text, "references": []}
        for i, text in enumerate(texts)
    ]
    test = [{**row, "gem_id": "dart-test-1", "target": texts[0], "references": texts}]
    folder = prepare_tfds(tmp_path / "tfds", features, {"train": train, "test": test})
    task = dart_task(str(folder), 0)
    assert task.test == expected.test
    assert {(e.query, e.completion) for e in task.train} == {
        (e.query, e.completion) for e in expected.train
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tripleset": []}, "tripleset is empty"),
        ({"tripleset": [["a", "b"]]}, r"\['a', 'b'\] is no triple"),
        ({"tripleset": ["a | b"]}, "'a | b' is no triple"),
        ({"annotations": []}, "has no text"),
        ({"annotations": [{"source": "s"}]}, "field 'text' is missing"),
        ({"annotations": ["text"]}, "'text' is not an object"),
        ({"annotations": "text"}, r"annotations is 'text'; expected list \| dict"),
        ({"tripleset": [5]}, "5 is no triple"),
    ],
)
def test_faulty_dart_rows_are_refused(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        dart_task(write(tmp_path, [{**DART, **change}], "train", "test"), 0)


def test_faulty_xml_is_refused(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.xml").write_text("<benchmark>")
    with pytest.raises(UserError, match=r"train\.xml is not XML"):
        dart_task(str(tmp_path), 0)


def test_totto_subtable_names_the_headers_of_the_highlighted_cell():
    assert linearise(totto_row(), "row") == (
        "<page_title> Kent FC </page_title> <section_title> Results </section_title> <table> "
        "<cell> 1 <col_header> Games </col_header> "
        "<row_header> 2001 </row_header> </cell> </table>"
    )


def test_totto_headers_are_found_by_column_spans_alone_as_in_the_paper():
    row = totto_row()
    row["highlighted_cells"] = [[2, 1], [1, 1]]
    # "away" stands in the third column, below a cell of two rows; it is counted in the second.
    assert linearise(row, "row").partition("<table> ")[2] == (
        "<cell> 3 <col_header> Games </col_header> <col_header> away </col_header> "
        "<row_header> 2001 </row_header> </cell> "
        "<cell> away <col_header> Games </col_header> <row_header> home </row_header> </cell> "
        "</table>"
    )


def test_totto_judges_on_dev_against_all_sentences(tmp_path):
    write(tmp_path, [totto_row(7)], "train", "dev")
    (tmp_path / "test.json").write_text(json.dumps([{"no": "sentences"}]))
    task = totto_task(str(tmp_path), 0)
    (test,) = task.test
    assert (test.id, test.slice) == ("dev-1", "overlap")
    assert test.references == (
        "Kent had 7 away games in 2001.",
        "In 2001 Kent played 7 away.",
    )
    assert [example.completion for example in task.train] == [test.references[0]]
    assert task.train[0].references == ()
    # BLEU as in the authors' script, which lower-cases both sides.
    shouted = [test.references[1].upper()]
    assert score_predictions("bleu", shouted, [test], **task.metric_options).value > 99


def test_totto_from_tfds_is_the_same(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.features import feature

    # tfds *writes* nested sequences by a property that imports TensorFlow; reading doesn't.
    monkeypatch.setattr(feature.TensorInfo, "dtype", property(lambda self: self.np_dtype))
    sequence = tfds.features.Sequence
    table = {"column_span": np.int32, "is_header": np.bool_, "row_span": np.int32}
    features = tfds.features.FeaturesDict(
        {
            "table_page_title": np.str_,
            "table_section_title": np.str_,
            "table_section_text": np.str_,
            "table": sequence(sequence({**table, "value": np.str_})),
            "highlighted_cells": sequence(sequence(np.int32)),
            "example_id": np.str_,
            "overlap_subset": np.str_,
            "sentence_annotations": sequence({"final_sentence": np.str_}),
        }
    )
    given = [{**totto_row(i), "overlap_subset": "True", "example_id": str(i)} for i in range(3)]
    folder = prepare_tfds(tmp_path / "tfds", features, {"train": given, "validation": given})
    monkeypatch.undo()
    (tmp_path / "json").mkdir()
    plain = totto_task(
        write(tmp_path / "json", [totto_row(i) for i in range(3)], "train", "dev"), 0
    )
    task = totto_task(str(folder), 0)
    # tfds shuffles what it prepares.
    assert {(e.query, e.references, e.slice) for e in task.test} == {
        (e.query, e.references, e.slice) for e in plain.test
    }
    assert {e.completion for e in task.train} == {e.completion for e in plain.train}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"highlighted_cells": []}, "highlighted_cells is empty"),
        ({"highlighted_cells": [[9, 0]]}, r"cell \[9, 0\] isn't in the table"),
        ({"highlighted_cells": [[0, -1]]}, r"cell \[0, -1\] isn't in the table"),
        ({"sentence_annotations": []}, "has no sentence"),
        ({"highlighted_cells": [[0]]}, r"cell \[0\] isn't in the table"),
        ({"table_section_title": 5}, "table_section_title is 5; expected str"),
        (
            {"table": [[{"value": "x"}]], "highlighted_cells": [[0, 0]]},
            "field 'column_span' is missing",
        ),
        (
            {"table": [[{"column_span": 1}]], "highlighted_cells": [[0, 0]]},
            "field 'value' is missing",
        ),
    ],
)
def test_faulty_totto_rows_are_refused(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        totto_task(write(tmp_path, [{**totto_row(), **change}], "train", "dev"), 0)


def test_logic2text_shows_title_header_and_form_and_keeps_the_form_for_its_metric(tmp_path):
    task = logic2text_task(write(tmp_path, [LOGIC], "train", "valid", "test"), 0)
    (test,) = task.test
    assert test.query == (
        f"Title: 1990 cup\nColumns: club | county\nLogical form: {LOGIC['logic_str']}"
    )
    assert (test.completion, test.slice) == ("three clubs are from kent .", "count")
    wrong = score_predictions("blec", ["four clubs are from kent ."], task.test)
    assert (wrong.value, wrong.reasons) == (0.0, {"3": 1})


def test_nl2formula_reads_both_layouts(tmp_path):
    published, flat = tmp_path / "a", tmp_path / "b"
    published.mkdir(), flat.mkdir()
    rows = [
        {"Table": FORMULA["Table"], "Formula": part["Formula2"], **part}
        for part in FORMULA["t5Formulas"]
    ]
    one = nl2formula_task(write(published, [FORMULA], "train", "valid", "test"), 0)
    two = nl2formula_task(write(flat, rows, "train", "valid", "test"), 0)

    def bare(examples):
        return [(e.query, e.completion, e.slice) for e in examples]

    assert bare(one.test) == bare(two.test)
    assert [example.id for example in one.test] == ["test-1-1", "test-1-2"]
    assert [example.slice for example in one.test] == ["easy", "medium"]
    assert one.test[0].query.endswith("9 | 1997 | T7\nQuestion: How many teams?")


def test_table_shows_letters_first_rows_and_the_last():
    table = [["Year", "Team"], *[[1990 + i, f"T{i}"] for i in range(8)]]
    lines = show_table(table, "row").split("\n")
    assert lines[0] == "A: Year | B: Team"
    assert [int(line.split(" | ")[0]) for line in lines[1:]] == [2, 3, 4, 5, 6, 9]
    assert show_table(table[:2], "row") == "A: Year | B: Team\n2 | 1990 | T0"
    assert [column_letters(i) for i in (0, 25, 26, 51, 52, 701, 702)] == (
        "A Z AA AZ BA ZZ AAA".split()
    )
    for faulty in ([], ["Year"], [[]]):
        with pytest.raises(UserError, match="Table is "):
            show_table(faulty, "row")


def test_files_task_reads_any_source_by_its_columns(tmp_path):
    (tmp_path / "template.txt").write_text("Answer.\n")
    (tmp_path / "train.csv").write_text("q,a\none,1\ntwo,2\n")
    (tmp_path / "test.csv").write_text("q,a\nthree,3\n")
    config = default_config()
    config.task.kind = "files"
    config.task.template = str(tmp_path / "template.txt")
    config.task.data = str(tmp_path)
    with pytest.raises(UserError, match=r"row 1: field 'query' is missing\. There are: q, a"):
        load_task(validate(config))
    config.task.query_field, config.task.completion_field = "q", "a"
    task = load_task(validate(config))
    assert [(e.query, e.completion) for e in task.train] == [("one", "1"), ("two", "2")]
    assert [e.query for e in task.test] == ["three"]
    config.task.train = str(tmp_path / "train.csv")
    with pytest.raises(UserError, match="both name the pairs"):
        load_task(validate(config))


@needs_data
def test_sets_at_hand_are_read_whole_and_say_whose_split_they_are():
    mtop = mtop_task(str(DATA / "mtop"), 0)
    assert [len(mtop.train), len(mtop.test)] == [1237, 859]
    assert "trained on test, judged on dev" in mtop.note
    dart = dart_task(str(DATA / "dart"), 0)
    # v1.1.1: 5,097 sets with 12,552 texts in test, some of them twice, one of them empty.
    assert [len(dart.train), len(dart.test)] == [12384, 2768]
    assert "published" not in dart.note.split("not comparable")[0]
    totto = totto_task(str(DATA / "totto_sample"), 0)
    assert [len(totto.train), len(totto.test)] == [3, 5]
    assert "dev has 5 of the published 7,700 rows" in totto.note
    assert totto.test[4].query.count("<cell>") == 2


CONFIGS = [f"experiments.ipt.{kind}" for kind in ("mtop", "totto", "dart", "logic2text")]


@pytest.mark.parametrize("module", [*CONFIGS, "experiments.promptintern.nl2formula"])
def test_configs_are_valid_and_of_full_size(module):
    config = validate(importlib.import_module(module).get_config())
    kind = module.rpartition(".")[2]
    assert config.task.kind == kind
    assert "/" in config.model.path
    levels = curriculum_of(config).levels
    if module in CONFIGS:
        assert config.adapter.soft_prompt and not config.adapter.targets
        assert [(level.keep_rate, level.shots) for level in levels] == [(0.0, 1)]
        assert (config.eval.keep_rate, config.eval.shots) == (0.0, 1)
    else:
        assert (levels[0].keep_rate, levels[-1].keep_rate, levels[-1].shots) == (1.0, 0.0, 0)
