"""Rows are the same wherever they lie, and what can't be read is told."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pintern.errors import UserError
from pintern.tasks.sources import objects, open_source, take

ROWS = [
    {"query": "a é", "completion": "007", "note": "x, y"},
    {"query": "b\u2028c", "completion": "1.50", "note": ""},
]


def write_jsonl(path, rows=ROWS):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_json(path, rows=ROWS):
    path.write_text(json.dumps(rows))


def write_csv(path, rows=ROWS):
    import csv

    with path.open("w", newline="") as file:
        writer = csv.DictWriter(
            file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ","
        )
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path, rows=ROWS):
    import datasets

    datasets.Dataset.from_list(rows).to_parquet(str(path))


WRITERS = {
    ".jsonl": write_jsonl,
    ".json": write_json,
    ".csv": write_csv,
    ".tsv": write_csv,
    ".parquet": write_parquet,
}


def prepare_tfds(folder, features, splits, version="1.0.0"):
    """Prepares a data set as tfds does, in array_record; returns its folder."""
    import tensorflow_datasets as tfds

    class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager):
            return {name: enumerate(rows) for name, rows in splits.items()}

        def _generate_examples(self):
            raise NotImplementedError

    tfds.disable_progress_bar()
    builder = Prepared(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)


def text_features(*names):
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict({name: tfds.features.Text() for name in names})


@pytest.mark.parametrize("ending", WRITERS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, ending):
    path = tmp_path / f"set_train{ending}"
    WRITERS[ending](path)
    splits = open_source(str(path))
    assert list(splits) == ["train"]
    assert splits["train"]() == ROWS


def test_saved_dataset_and_prepared_tfds_give_the_same_rows(tmp_path):
    import datasets

    saved = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(ROWS), "validation": datasets.Dataset.from_list(ROWS)}
    )
    saved.save_to_disk(str(tmp_path / "saved"))
    splits = open_source(str(tmp_path / "saved"))
    assert sorted(splits) == ["dev", "train"]
    assert splits["dev"]() == ROWS

    saved["dev"] = saved["train"]
    saved.save_to_disk(str(tmp_path / "twice"))
    with pytest.raises(UserError, match="two splits that mean dev: validation and dev"):
        open_source(str(tmp_path / "twice"))

    folder = prepare_tfds(
        tmp_path / "tfds", text_features(*ROWS[0]), {"train": ROWS, "validation": ROWS[:1]}
    )
    for given in (folder, folder.parent):  # the version, or the one above that has only it
        splits = open_source(str(given))
        assert sorted(splits) == ["dev", "train"]
        assert sorted(splits["train"](), key=str) == sorted(ROWS, key=str)
        assert splits["dev"]() == ROWS[:1]


def test_tfds_is_read_without_tensorflow(tmp_path):
    folder = prepare_tfds(tmp_path, text_features("query"), {"test": [{"query": "q"}]})
    code = (
        "import sys\nfrom pintern.tasks.sources import open_source\n"
        f"print(open_source({str(folder)!r})['test'](), 'tensorflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    assert "[{'query': 'q'}] False" in done.stdout


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("dart-v1.1.1-full-dev.json", "dev"),
        ("totto_train_data.jsonl", "train"),
        ("valid.json", "dev"),
        ("test-00000-of-00001.parquet", "test"),
        ("latest.json", "all"),
    ],
)
def test_split_is_a_word_of_the_file_name(tmp_path, name, split):
    WRITERS[Path(name).suffix](tmp_path / name)
    assert list(open_source(str(tmp_path / name))) == [split]


def test_folder_has_a_file_for_each_split_and_others_are_passed_over(tmp_path):
    write_json(tmp_path / "valid.json")
    write_csv(tmp_path / "train.csv")
    write_jsonl(tmp_path / "whole.jsonl")
    (tmp_path / "train.md").write_text("about train")
    assert sorted(open_source(str(tmp_path))) == ["dev", "train"]
    write_jsonl(tmp_path / "train.jsonl")
    with pytest.raises(UserError, match=r"two files of split train: train\.csv and train\.jsonl"):
        open_source(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"a": 1}\n{"a":\n', r"a\.jsonl, line 2: not JSON"),
        ("a.jsonl", "\n", r"a\.jsonl holds no rows"),
        ("a.jsonl", "[1]\n", r"row 1 is \[1\]; expected an object"),
        ("a.json", '[{"a": 1},\n', r"a\.json, line 2: not JSON.*call it \.jsonl"),
        ("a.json", '{"a": 1}', "not a list of objects"),
        ("a.json", "[" * 200_000, "nested too deep"),
        ("a.csv", "a,b\n1\n", r"a\.csv, line 2: .*than the 2 that"),
        ("a.csv", "a,b\n1,2,3\n", r"a\.csv, line 2: .*than the 2 that"),
        ("a.csv", "a,b\n", "holds no rows"),
        ("a.csv", "a,b\n1,2\n" + '"' + 50_000 * "1,2\n", r"line \d+: not read .*a quote left open"),
        ("a.tsv", "a\tb\ta\n1\t2\t3\n", "names two columns 'a'"),
        ("a.json", "[" + "9" * 5_000 + "]", r"a\.json: not read \(Exceeds the limit"),
        ("a.parquet", "no parquet", "can't be read as Parquet"),
        ("a.xlsx", "x", r"kind \.xlsx can't be read.*\.csv"),
        ("a.jsonl", b"\xff", "not UTF-8"),
        ("a.jsonl", b'{"a": "\\ud83d"}', r"a\.jsonl, line 1: \\ud83d is half of a character"),
        ("a.json", b'[{"a": "\\ud83d"}]', r"a\.json: \\ud83d is half of a character"),
    ],
)
def test_faulty_file_is_refused(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        next(iter(open_source(str(path)).values()))()


def test_folders_that_hold_nothing_to_read_are_refused(tmp_path):
    with pytest.raises(UserError, match="holds no file of a split, and tensorflow-datasets didn't"):
        open_source(str(tmp_path))
    (tmp_path / "features.json").write_text("{}")
    with pytest.raises(UserError, match="can't be read as a prepared tensorflow-datasets folder"):
        open_source(str(tmp_path))
    for version in ("1.0.0", "2.0.0"):
        prepare_tfds(tmp_path / "two", text_features("a"), {"train": [{"a": "b"}]}, version)
    with pytest.raises(UserError, match=r"2 prepared versions: 1\.0\.0, 2\.0\.0"):
        open_source(str(tmp_path / "two" / "prepared"))


def test_records_in_tfrecord_are_refused_with_the_mend(tmp_path):
    folder = prepare_tfds(tmp_path, text_features("a"), {"train": [{"a": "b"}]})
    info = json.loads((folder / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match="file_format='array_record'"):
        open_source(str(folder))


def test_a_prepared_split_whose_file_is_gone_is_told(tmp_path):
    folder = prepare_tfds(tmp_path, text_features("a"), {"train": [{"a": "b"}]})
    (shard,) = folder.glob("*.array_record*")
    shard.write_bytes(b"cut off")
    with pytest.raises(UserError, match="can't be read"):
        open_source(str(folder))["train"]()


def test_nothing_given_and_nothing_there():
    with pytest.raises(UserError, match=r"config\.task\.data is empty.*org/name on the hub"):
        open_source("")
    for where in ("/nowhere/at/all", "nowhere", "no/such.jsonl", "../no/folder"):
        with pytest.raises(UserError, match="no such file or folder"):
            open_source(where)


def test_unknown_hub_name_offline_is_one_error(tmp_path):
    code = (
        "from pintern.errors import UserError\n"
        "from pintern.tasks.sources import open_source\n"
        "try: open_source('no-such-org/no-such-set:none')\n"
        "except UserError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "/usr/bin"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    assert "no-such-org/no-such-set:none: no such file or folder here, and as a data set" in line
    assert "or give a local file or folder" in line


def test_take_names_what_is_wrong():
    assert take({"a": "x"}, "a", str, "row 1") == "x"
    for row, message in (
        ({"b": 1}, "row 1: field 'a' is missing. There are: b."),
        ({"a": None}, "field 'a' is missing"),
        ({"a": 7}, "row 1: a is 7; expected str"),
        ({"a": " "}, "row 1: a is empty"),
        (["a"], "row 1: ['a'] is not an object with a field 'a'"),
        ("a", "row 1: 'a' is not an object with a field 'a'"),
    ):
        with pytest.raises(UserError) as caught:
            take(row, "a", str, "row 1")
        assert message in str(caught.value)
    with pytest.raises(UserError, match=r"a is 7; expected list \| dict"):
        take({"a": 7}, "a", list | dict, "row 1")


def test_objects_from_columns_at_any_depth():
    flat = [{"a": 1, "b": 2}, {"a": 3, "b": 4}]
    assert objects(flat) == flat
    assert objects({"a": [1, 3], "b": [2, 4]}) == flat
    assert objects({"a": [[1], [3, 5]], "b": [[2], [4, 6]]}) == [
        [{"a": 1, "b": 2}],
        [{"a": 3, "b": 4}, {"a": 5, "b": 6}],
    ]
    assert objects({"a": [], "b": []}) == []
