"""The prompts of a run: rates asked for and got, and where they stand."""

import dataclasses
import json
import shutil

import pytest
import tiny

from pintern.assemble import assemble
from pintern.errors import UserError
from pintern.prompts import pipeline
from pintern.prompts.pipeline import pool_pieces
from pintern.prompts.task import Example, PromptFormat
from pintern.training.data import TrainingData
from pintern.training.loop import train


@pytest.fixture(scope="module")
def prompts():
    return assemble(tiny.config(curriculum__stages=3, prompt__max_shots=2)).prompts


def test_rates_asked_for_and_got_stand_beside_the_whole_prompts_share(prompts):
    levels = prompts.levels()
    full = len(prompts.renderer.tokenizer.encode(tiny.TEMPLATE))
    assert [(level.asked, level.shots) for level in levels] == [(1.0, 2), (0.5, 1), (0.0, 0)]
    for level in levels:
        text = prompts.ladder[level.asked].text
        assert level.template == len(prompts.renderer.tokenizer.encode(text))
        assert level.got == level.template / full
        assert abs(level.got - level.asked) <= 0.02
        assert level.prompt == pytest.approx(level.template + level.examples + level.query)
        assert level.of_whole_prompt == pytest.approx(level.prompt / levels[0].prompt)
    # The query is never left out, so that the whole prompt's share is no template rate.
    assert levels[-1].got == 0 < levels[-1].of_whole_prompt
    assert levels[0].got == levels[0].of_whole_prompt == 1


def test_a_rate_may_be_asked_for_as_tables_show_it():
    """A third is 0.333333 to the schedule, and 0.33 to whoever reads it."""
    made = assemble(tiny.config(curriculum__stages=4, eval__keep_rate=0.33)).prompts
    assert list(made.ladder) == [0, 0.333333, 0.666667, 1]
    assert made.rung(0.33) is made.rung(0.333333)
    assert made.prefix(0.33) == made.prefix(0.333333) != made.prefix(0.67)
    with pytest.raises(UserError, match="share the file"):
        assemble(tiny.config(curriculum__stages=4, eval__keep_rate=0.996))


def test_tokens_are_those_of_the_rows(prompts):
    """Means of the table against rows as they are trained, BOS and completion aside."""
    for level in prompts.levels():
        shots = prompts.shots_for_pool(level.shots)
        rows = [
            prompts.renderer.row(piece, shot, complete=False)
            for piece, shot in zip(prompts.pool, shots, strict=True)
        ]
        mean = sum(len(row.tokens) for row in rows) / len(rows)
        # The table's examples have the pool's mean length, retrieved ones nearly so.
        assert mean == pytest.approx(level.examples + level.query, rel=0.1)


def test_a_query_of_the_log_is_not_shown_the_labelled_pair_that_asks_it(prompts):
    query = prompts.task.train[3].query
    assert prompts.shots_for([query], 1) == [[prompts.pool[3]]]
    # The teacher's answer is learned as a labelled one would be, so the prompt may not hold it.
    answered = [Example(query, "shelf 1"), Example("Where is the pink bolt?", "shelf 2")]
    rows = TrainingData(prompts, answered, seed=0, batch_rows=4, accumulate=1).rows(1)[-2:]
    pieces = prompts.renderer.pieces(answered)
    shots = [*prompts.shots_for_pool(1)[3:4], *prompts.shots_for([answered[1].query], 1)]
    assert rows == [prompts.renderer.row(*each) for each in zip(pieces, shots, strict=True)]


def test_ids_of_many_pairs_are_kept_and_follow_text_and_tokenizer(prompts, tmp_path, monkeypatch):
    monkeypatch.setattr("pintern.prompts.pipeline.LARGE", 1)
    renderer, examples = prompts.renderer, prompts.task.train
    assert pool_pieces(renderer, examples, tmp_path) == prompts.pool
    with monkeypatch.context() as patch:
        patch.setattr(type(renderer), "pieces", None)  # would be called to make them
        assert pool_pieces(renderer, examples, tmp_path) == prompts.pool
    changed = [*examples[:-1], dataclasses.replace(examples[-1], completion="shelf nine")]
    assert pool_pieces(renderer, changed, tmp_path) == renderer.pieces(changed)
    other = dataclasses.replace(
        renderer, task=dataclasses.replace(renderer.task, format=PromptFormat(query="Q: {query}"))
    )
    assert pool_pieces(other, examples, tmp_path) == other.pieces(examples) != prompts.pool
    assert len(list(tmp_path.iterdir())) == 3


def test_levels_lie_beside_the_texts_and_follow_an_edit(prompts, tmp_path):
    prompts.write(tmp_path)
    record = json.loads((tmp_path / "levels.json").read_text())
    assert record == [level._asdict() for level in prompts.levels()]
    (tmp_path / "template-0.50.txt").write_text("bolts lie on shelf four\n")
    config = tiny.config(curriculum__stages=3, prompt__max_shots=2)
    edited = assemble(config, prompts_directory=tmp_path).prompts
    record = json.loads((tmp_path / "levels.json").read_text())
    assert record[1]["asked"] == 0.5
    assert record[1]["got"] == edited.levels()[1].got < 0.2


def test_a_run_outlives_the_ladder_that_it_was_given(prompts, tmp_path):
    ladder, run = tmp_path / "by-hand", tmp_path / "prompts"
    prompts.write(ladder)
    (ladder / "template-0.50.txt").write_text("bolts lie on shelf four\n")
    config = tiny.config(
        curriculum__stages=3,
        prompt__ladder=str(ladder),
        prompt__compressor="self_information",  # the default, as a ladder needs none
    )
    made = assemble(config).prompts
    made.write(run)
    shutil.rmtree(ladder)
    assert assemble(config, prompts_directory=run).prompts.ladder == made.ladder
    with pytest.raises(UserError, match=r"by-hand lacks template-0\.50\.txt"):
        assemble(config)


def test_a_folder_that_holds_all_is_only_read(prompts, tmp_path, monkeypatch):
    """A run that is served may lie on a file system that is mounted for reading."""
    prompts.write(tmp_path)

    def refuse(path, text):
        raise AssertionError(f"{path} is written")

    for module in ("files", "prompts.ladder"):
        monkeypatch.setattr(f"pintern.{module}.write_atomically", refuse)
    config = tiny.config(curriculum__stages=3, prompt__max_shots=2)
    assert assemble(config, prompts_directory=tmp_path).prompts.ladder == prompts.ladder


def test_of_several_processes_the_first_writes_the_texts(tmp_path, monkeypatch):
    """All at once they would take away each other's half-written files."""
    monkeypatch.setattr(pipeline, "from_first", lambda function: None)
    assemble(tiny.config(), prompts_directory=tmp_path / "prompts")
    assert not (tmp_path / "prompts").exists()


def test_the_table_is_printed_once_when_training_starts(tmp_path, capsys):
    config = tiny.config()  # unchanged: its programs are compiled for many tests
    assert train(config, tmp_path / "run")
    told = capsys.readouterr().out
    assert told.count("asked τ") == 1
    assert assemble(config).prompts.schedule_table() in told
    assert (tmp_path / "run" / "prompts" / "levels.json").exists()
    assert train(config, tmp_path / "run")  # resumed, though nothing is left
    assert "asked τ" not in capsys.readouterr().out
