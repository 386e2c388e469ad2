"""Ladders: built, written, edited by a person, read back."""

import json

import pytest
from prompt_samples import TEMPLATE, tiny_tokenizer, unigram_bits

from pintern.errors import UserError
from pintern.prompts.compressors.rates import keep_rate_of
from pintern.prompts.compressors.self_information import SelfInformationCompressor
from pintern.prompts.ladder import build_ladder, read_ladder, write_ladder

RATES = (1.0, 2 / 3, 0.3, 0.0)


@pytest.fixture(scope="module")
def ladder():
    compress = SelfInformationCompressor(tiny_tokenizer(), unigram_bits)
    return build_ladder(TEMPLATE, RATES, compress, tiny_tokenizer())


def read(directory, rates=RATES):
    return read_ladder(directory, rates, tiny_tokenizer(), TEMPLATE)


def test_rungs_say_what_they_hold(ladder):
    assert list(ladder) == list(RATES)
    for rate, rung in ladder.items():
        assert rung.asked == rate
        assert abs(rung.got - rate) <= 0.02
        assert rung.got == keep_rate_of(tiny_tokenizer(), rung.text, TEMPLATE)
        assert rung.tokens == len(tiny_tokenizer().encode(rung.text))
    assert (ladder[1.0].text, ladder[0.0].text) == (TEMPLATE, "")


def test_compressor_that_misses_is_refused():
    with pytest.raises(UserError, match=r"asked for keep rate 0\.50 and gave 1\.000"):
        build_ladder(TEMPLATE, [0.5], lambda text, rate: text, tiny_tokenizer())


def test_written_ladder_reads_back(ladder, tmp_path):
    folder = tmp_path / "run" / "prompts"
    write_ladder(folder, ladder)
    names = ["template-0.00.txt", "template-0.30.txt", "template-0.67.txt", "template-1.00.txt"]
    assert sorted(path.name for path in folder.iterdir()) == ["ladder.json", *names]
    record = json.loads((folder / "ladder.json").read_text())
    assert [entry["file"] for entry in record] == names[::-1]
    assert [(e["asked"], e["got"], e["tokens"]) for e in record] == [
        (rung.asked, rung.got, rung.tokens) for rung in ladder.values()
    ]
    assert read(folder) == ladder


def test_writing_twice_changes_nothing(ladder, tmp_path):
    write_ladder(tmp_path, ladder)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_ladder(tmp_path, ladder)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_edited_text_is_read_and_never_overwritten(ladder, tmp_path):
    write_ladder(tmp_path, ladder)
    edited = tmp_path / "template-0.30.txt"
    edited.write_text("Tables: orders ord_7.\n")
    (tmp_path / "template-0.67.txt").unlink()
    with pytest.raises(UserError, match=r"template-0\.30\.txt is there already and differs"):
        write_ladder(tmp_path, ladder)
    assert edited.read_text() == "Tables: orders ord_7.\n"
    assert not (tmp_path / "template-0.67.txt").exists()

    found = read(tmp_path, (1.0, 0.3, 0.0))
    assert found[0.3].text == "Tables: orders ord_7.\n"
    assert found[0.3].asked == 0.3
    assert 0 < found[0.3].got < 0.1
    write_ladder(tmp_path, found)
    record = json.loads((tmp_path / "ladder.json").read_text())
    assert [entry["got"] for entry in record] == [1, found[0.3].got, 0]


def test_an_editors_mark_is_no_part_of_a_text(ladder, tmp_path):
    """Some editors set a byte order mark at the head of whatever they save."""
    write_ladder(tmp_path, ladder)
    (tmp_path / "template-0.30.txt").write_text(
        "Tables: orders ord_7.\r\n", "utf-8-sig", newline=""
    )
    (tmp_path / "template-0.00.txt").write_text("", "utf-8-sig")
    found = read(tmp_path)
    assert found[0.3].text == "Tables: orders ord_7.\r\n"
    assert found[0.0].text == ""
    write_ladder(tmp_path, found)


def test_missing_files_are_all_listed(tmp_path):
    (tmp_path / "template-0.50.txt").write_text("Tables.")
    with pytest.raises(UserError, match=r"lacks template-0\.75\.txt, template-0\.25\.txt") as told:
        read(tmp_path, (1.0, 0.75, 0.5, 0.25, 0.0))
    assert "there: template-0.50.txt." in str(told.value)
    assert read(tmp_path, (1.0, 0.0))[1.0].text == TEMPLATE


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("template-0.30.txt", TEMPLATE + " And more.", "shorten it"),
        ("template-0.30.txt", "\n", "is empty"),
        ("template-1.00.txt", TEMPLATE + "\n", "differs from the task's template"),
        ("template-0.00.txt", "Rules.", "not empty"),
    ],
)
def test_texts_that_break_a_rule_are_named(ladder, tmp_path, name, text, said):
    write_ladder(tmp_path, ladder)
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=name) as caught:
        read(tmp_path)
    assert said in str(caught.value)


def test_rates_are_checked(ladder, tmp_path):
    for bad, said in (((1.5,), "outside"), ((0.333, 0.3333), r"share the file template-0\.33")):
        with pytest.raises(UserError, match=said):
            read(tmp_path, bad)
        with pytest.raises(UserError, match=said):
            build_ladder(TEMPLATE, bad, lambda text, rate: text, tiny_tokenizer())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written"):
        write_ladder(tmp_path / "file", ladder)
