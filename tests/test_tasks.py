"""Loaders of tasks, and the files and commands that the examples promise."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.promptintern import nl2bash, own_prompt
from pintern.config import default_config, validate
from pintern.errors import UserError
from pintern.prompts.tokens import PieceTokenizer
from pintern.tasks import load_task
from pintern.tasks.nl2bash import MAX_COMMAND, MAX_QUERY, PAPER_SPLIT, nl2bash_task

REPOSITORY = Path(__file__).parents[1]
NL2BASH = REPOSITORY / ".." / "shared" / "data" / "nl2bash"
GUIDE = REPOSITORY / "experiments" / "own_prompt.md"
needs_nl2bash = pytest.mark.skipif(not NL2BASH.exists(), reason="../shared/data is absent")

# Forty tasks; every fourth has a second command, under the same task in other letters.
PAIRS = [(f"List directory {i}", f"ls d{i}") for i in range(40)]
PAIRS += [(f"list  directory {i}", f"find d{i} -maxdepth 1") for i in range(0, 40, 4)]


@pytest.fixture
def folder(tmp_path):
    def write(pairs, **replaced):
        texts = {
            "nl": "".join(f"{query}\n" for query, _ in pairs),
            "cm": "".join(f"{command}\n" for _, command in pairs),
            **replaced,
        }
        for ending, text in texts.items():
            content = text if isinstance(text, bytes) else text.encode()
            (tmp_path / f"all.{ending}").write_bytes(content)
        return str(tmp_path)

    return write


def asked(examples):
    return {" ".join(example.query.lower().split()) for example in examples}


def pairs_of(examples):
    return [(example.query, example.completion) for example in examples]


def test_one_task_stays_on_one_side_whatever_the_seed(folder):
    path = folder(PAIRS)
    for seed in range(20):
        task = nl2bash_task(path, seed)
        assert not asked(task.train) & asked(task.test)
        # 40 tasks in the paper's proportion: 3 test, 3 dev.
        assert (len(asked(task.train)), len(asked(task.test))) == (34, 3)
        assert set(pairs_of(task.train) + pairs_of(task.test)) < set(PAIRS)


def test_split_depends_on_seed_and_pairs_alone(folder):
    task = nl2bash_task(folder(PAIRS), 0)
    assert nl2bash_task(folder(PAIRS[::-1]), 0) == task
    assert pairs_of(nl2bash_task(folder(PAIRS), 1).test) != pairs_of(task.test)


def test_head_of_train_is_not_the_head_of_the_file(folder):
    train = pairs_of(nl2bash_task(folder(PAIRS), 0).train)
    places = [PAIRS.index(pair) for pair in train if pair in PAIRS[:40]]
    assert places != sorted(places)


def test_duplicates_and_long_lines_are_dropped_and_counted(folder):
    long = [("x" * (MAX_QUERY + 1), "ls"), ("too long a command", "x" * (MAX_COMMAND + 1))]
    limit = ("q" * MAX_QUERY, "c" * MAX_COMMAND)
    path = folder([*PAIRS, *PAIRS[:5], *long, limit])
    found = [pair for seed in range(20) for pair in pairs_of(nl2bash_task(path, seed).train)]
    assert limit in found
    assert not set(long) & set(found)
    train = pairs_of(nl2bash_task(path, 0).train)
    assert len(train) == len(set(train))
    assert "58 pairs read, 5 duplicates and 2 pairs with" in nl2bash_task(path, 0).note


def test_note_says_whose_split_it_is(folder):
    task = nl2bash_task(folder(PAIRS), 7)
    assert "not the paper's" in task.note
    assert f"train {len(task.train)}" in task.note
    assert f"test {len(task.test)}, seed 7" in task.note


def test_only_newlines_end_a_line(folder):
    odd = [("Print an odd character", "printf 'a\u2028b\x0c'")] * 9
    pairs = [(f"{query} {i}", command) for i, (query, command) in enumerate(odd)]
    assert pairs_of(nl2bash_task(folder(pairs), 0).train)[0][1] == odd[0][1]


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"nl": "one task\n"}, "all.nl has 1 lines and all.cm has 50"),
        ({"nl": "a\n\nb\n"}, "all.nl, line 2 is empty"),
        ({"cm": "a\nb\n \t\n"}, "all.cm, line 3 is empty"),
        ({"cm": b"ls\nls \xff\n"}, r"all.cm, line 2: not UTF-8 \(byte 6\)"),
        ({"nl": "", "cm": ""}, "all.nl, line 1 is empty"),
        ({"nl": "a\nb\n", "cm": "a\nb\n"}, "holds 2 distinct tasks, too few"),
    ],
)
def test_faulty_files_are_refused(folder, replaced, message):
    path = folder(PAIRS, **replaced)
    with pytest.raises(UserError, match=message):
        nl2bash_task(path, 0)


def test_missing_folder_and_file_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"Pass --config.task.data=FOLDER"):
        nl2bash_task("", 0)
    with pytest.raises(UserError, match="no such file or folder"):
        nl2bash_task(str(tmp_path / "nowhere"), 0)
    path = folder(PAIRS)
    (tmp_path / "all.cm").unlink()
    with pytest.raises(UserError, match=r"all.cm can't be read: No such file"):
        nl2bash_task(path, 0)


@needs_nl2bash
def test_nl2bash_itself():
    task = nl2bash_task(str(NL2BASH), 0)
    assert "12607 pairs read, 0 duplicates and 544 pairs" in task.note
    train, test = len(task.train), len(task.test)
    dev = 12607 - 544 - train - test
    for found, share in zip((train, dev, test), PAPER_SPLIT, strict=True):
        assert found / (12607 - 544) == pytest.approx(share / sum(PAPER_SPLIT), abs=0.01)
    assert not asked(task.train) & asked(task.test)
    config = nl2bash.get_config()
    config.task.data = str(NL2BASH)
    cut = load_task(validate(config))
    assert (len(cut.train), len(cut.test)) == (2000, 200)
    assert cut.train == task.train[:2000]


def test_company_task_loads_and_is_cut():
    config = default_config()
    whole = load_task(validate(config))
    assert (len(whole.train), len(whole.test), len(whole.unlabelled)) == (400, 200, 1500)
    config.task.max_train, config.task.max_test = 30, 7
    cut = load_task(validate(config))
    assert (cut.train, cut.test) == (whole.train[:30], whole.test[:7])
    assert (
        cut.note
        == "Cut to the first 30 of 400 labelled pairs and the first 7 of 200 test examples."
    )
    config.task.max_train, config.task.max_test = 400, 1000
    assert load_task(validate(config)) == whole


@pytest.fixture
def own(tmp_path):
    """Config of a task of 10 pairs, without a test file."""
    (tmp_path / "template.txt").write_text("Answer in one word.\n")
    rows = [{"query": f"q{i}", "completion": f"a{i}"} for i in range(10)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = default_config()
    config.task.kind = "files"
    config.task.template = str(tmp_path / "template.txt")
    config.task.train = str(tmp_path / "train.jsonl")
    return config


def test_too_few_pairs_to_hold_any_out_are_named_by_their_file(own):
    Path(own.task.train).write_text(json.dumps({"query": "q", "completion": "a"}) + "\n")
    said = rf"{re.escape(own.task.train)} has 1 distinct queries.*config\.task\.test"
    with pytest.raises(UserError, match=said):
        load_task(validate(own))


def test_own_files_without_a_test_file_hold_a_fifth_out(own):
    task = load_task(validate(own))
    assert (len(task.train), len(task.test)) == (8, 2)
    assert not asked(task.train) & asked(task.test)
    assert task.note.startswith("No test file: 2 of the 10 pairs")
    assert load_task(own) == task
    splits = set()
    for seed in range(8):
        own.seed = seed
        splits.add(frozenset(asked(load_task(own).test)))
    assert len(splits) > 1


def test_test_queries_that_the_log_has_are_told_where_it_is_distilled_on(own):
    """The pairs' own file as the log holds the queries that are held out of it."""
    own.task.unlabelled = own.task.train
    assert "the log" not in load_task(validate(own)).note
    own.distill.weight, own.distill.unlabelled = 1.0, 4
    note = load_task(validate(own)).note
    assert note.endswith("Test queries that the log to distil on has as well: 2.")
    assert note.startswith("No test file: 2 of the 10 pairs")


def test_own_test_file_is_used_whole(own, tmp_path):
    (tmp_path / "test.jsonl").write_text('{"query": "new", "completion": "yes"}\n')
    own.task.test = str(tmp_path / "test.jsonl")
    task = load_task(validate(own))
    assert (len(task.train), pairs_of(task.test), task.note) == (10, [("new", "yes")], "")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("template", "", "Pass --config.task.template=PATH"),
        ("train", "", "Pass --config.task.train=PATH"),
        ("metric", "sql", "needs config.task.database"),
        ("query_format", "Ticket:", "config.task.query_format is 'Ticket:'"),
    ],
)
def test_own_files_need_their_fields(own, field, value, message):
    own.task[field] = value
    with pytest.raises(UserError, match=re.escape(message)):
        load_task(validate(own))


@pytest.mark.parametrize("missing", ["query", "completion"])
def test_own_record_without_a_field_is_named(own, missing):
    row = {"query": "q", "completion": "a"}
    del row[missing]
    with Path(own.task.train).open("a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=rf"train.jsonl, line 11: {missing} is missing"):
        load_task(own)


def test_example_of_an_own_prompt_follows_its_own_rules(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    task = load_task(validate(own_prompt.get_config()))
    assert (len(task.train), len(task.test)) == (40, 10)
    assert not asked(task.train) & asked(task.test)
    teams = re.findall(r"^(\w+) is for ", task.template, re.M)
    for example in (*task.train, *task.test):
        answer = json.loads(example.completion)
        assert list(answer) == ["team", "priority", "reply_in"]
        assert answer["team"] in teams
        assert answer["priority"] in (1, 2, 3)
        assert answer["reply_in"] in ("en", "de", "fr")
        assert answer["team"] != "abuse" or answer["priority"] == 1
    shown = {example.completion for example in task.train}
    assert {example.completion for example in task.test} <= shown


def test_guide_names_files_and_fields_that_there_are():
    text = GUIDE.read_text(encoding="utf-8")
    commands = re.findall(r"^python -m (\S+)(.*(?:\\\n.*)*)", text, re.M)
    assert len(commands) >= 4
    for module, flags in commands:
        assert (REPOSITORY / f"{module.replace('.', '/')}.py").is_file()
        for path in re.findall(r"--config=(\S+)", flags):
            assert (REPOSITORY / path).is_file()
        for field in re.findall(r"--config\.([\w.]+)=", flags):
            group, name = field.split(".")
            assert name in default_config()[group]
    for path in re.findall(r"`(experiments/[\w/.]+)`", text):
        assert (REPOSITORY / path).exists()


def make_gpt2(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.promptintern.make_gpt2", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )


def test_made_gpt2_is_a_checkpoint_directory(tmp_path):
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    from pintern.models.load import check_tokenizer, load_model

    end = "<|endoftext|>"
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [],
        trainers.BpeTrainer(
            vocab_size=257, special_tokens=[end], initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    where = (f"--tokenizer={tmp_path}", f"--out={tmp_path / 'gpt2'}")
    made = make_gpt2(*where, "--width=32", "--layers=1")
    assert made.returncode == 0, made.stderr
    checkpoint = load_model(tmp_path / "gpt2")
    assert (checkpoint.family.name, checkpoint.config.vocab_size) == ("gpt2", 257)
    pieces = PieceTokenizer.load(tmp_path / "gpt2")
    check_tokenizer(pieces.size, checkpoint.config)
    assert (pieces.bos, pieces.eos) == ((), tokenizer.token_to_id(end))
    assert pieces.decode(pieces.encode(" find . -name 'é'")) == " find . -name 'é'"


def test_gpt2_needs_its_tokenizer(tmp_path):
    refused = make_gpt2(f"--tokenizer={tmp_path}", f"--out={tmp_path / 'gpt2'}")
    assert refused.returncode == 2
    assert "there is no such file" in refused.stderr
    assert not (tmp_path / "gpt2").exists()


def test_gpt2_without_an_end_token_is_refused(tmp_path):
    import tokenizers

    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(tmp_path / "tokenizer.json"))
    refused = make_gpt2(f"--tokenizer={tmp_path}", f"--out={tmp_path / 'gpt2'}")
    assert refused.returncode == 2
    assert "has no token <|endoftext|>" in refused.stderr
