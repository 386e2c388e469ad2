"""A user's prompts get the answers that evaluation would score, streamed or in batches."""

import functools
import os
import pty
import shutil
import subprocess
import sys

import pytest
import tiny

from pintern.assemble import assemble, load_base
from pintern.config import to_json
from pintern.errors import UserError
from pintern.evaluation.run import InferencePrompt, evaluate
from pintern.evaluation.serving import checkpoint_server, run_server
from pintern.prompts.chat import conversation_ids
from pintern.prompts.requests import Request, parse_requests
from pintern.training.restore import restore_run
from pintern.training.workdir import read_config

# Chats whose turns open and close with the two special tokens that the tiny tokenizer has.
TURNS = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


@functools.cache
def restored(keep_rate=0.0, shots=0, temperature=0.0, base=False):
    run = tiny.trained_run()
    config = read_config(run)
    config.eval.keep_rate, config.eval.shots = keep_rate, shots
    config.eval.temperature = temperature
    return restore_run(run, config, base=base)[:2]


def requests(parts) -> list[Request]:
    examples = parts.prompts.task.test
    return [Request(e.query, f"line {i}", e.id) for i, e in enumerate(examples, start=1)]


def answers(server, asked, **how) -> list[dict]:
    found = server.generator(server.rows(asked), batch_rows=len(asked), **how)
    return [server.answer(request, ids) for request, ids in zip(asked, found, strict=True)]


@pytest.mark.parametrize(("keep_rate", "shots"), [(0.0, 0), (1.0, 1)])
def test_answers_are_those_that_evaluation_scores(keep_rate, shots):
    parts, adapter = restored(keep_rate, shots)
    scored = evaluate(parts, adapter, InferencePrompt(keep_rate, shots)).predictions
    made = answers(run_server(parts, adapter), requests(parts))
    assert [a["completion"] for a in made] == [p["prediction"] for p in scored]
    assert [(a["id"], a["query"]) for a in made] == [(p["id"], p["query"]) for p in scored]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_streamed_is_what_a_batch_gets(temperature):
    parts, adapter = restored(temperature=temperature)
    server, asked = run_server(parts, adapter, top_p=0.95), requests(parts)
    batched = [a["completion"] for a in answers(server, asked, seed=4)]
    rows = server.rows(asked)
    for index in range(3):
        pieces = list(server.stream(rows[index], seed=4, index=index))
        assert "".join(pieces) == batched[index]
    if temperature:
        assert [a["completion"] for a in answers(server, asked, seed=5)] != batched


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_guessed_ahead_changes_no_answer(temperature):
    parts, adapter = restored(temperature=temperature)
    asked = requests(parts)
    plain = answers(run_server(parts, adapter), asked, seed=3)
    parts.config.eval.draft_tokens = 3
    try:
        server = run_server(parts, adapter)
    finally:
        parts.config.eval.draft_tokens = 0
    streamed = [
        "".join(server.stream(row, seed=3, index=i)) for i, row in enumerate(server.rows(asked))
    ]
    assert streamed == [answer["completion"] for answer in plain]


def test_merged_or_not_the_answer_is_the_same():
    parts, adapter = restored()
    asked = requests(parts)
    merged = answers(run_server(parts, adapter), asked)
    assert merged == answers(run_server(parts, adapter, merge=False), asked)


def test_a_checkpoint_alone_answers_as_the_run_s_base():
    parts, _ = restored(base=True)
    server = checkpoint_server(
        parts.checkpoint, parts.tokenizer, 4, query_format=parts.prompts.task.format.query
    )
    asked = requests(parts)
    assert answers(server, asked) == answers(run_server(parts, None), asked)


def test_raw_text_stands_behind_the_start_token_alone():
    parts, adapter = restored(keep_rate=1.0, shots=1)
    server = run_server(parts, adapter, raw=True)
    text = "Where is the red bolt?"
    assert server.rows([Request(text, "here")]) == [parts.tokenizer.encode(text)]
    assert server.prefix == len(parts.tokenizer.bos)
    plain = checkpoint_server(parts.checkpoint, parts.tokenizer, 4)
    assert plain.rows([Request(text, "here")]) == [parts.tokenizer.encode(text)]


def test_why_a_completion_ended_is_told():
    parts, adapter = restored()
    server = run_server(parts, adapter)
    request = Request("x", "here")
    assert server.answer(request, [9] * 4)["ended_by"] == "length"
    assert server.answer(request, [9] * 3)["ended_by"] == "end token"
    assert "id" not in server.answer(request, [9])


def test_a_prompt_that_leaves_no_room_is_named():
    parts, adapter = restored()
    server = run_server(parts, adapter)
    long = Request("bolt " * tiny.CONTEXT, "prompts.txt, line 3")
    said = r"prompts\.txt, line 3: the prompt is \d+ tokens long \(1 of prefix, \d+ of row\); .*512"
    with pytest.raises(UserError, match=said):
        server.rows([Request("fine", "prompts.txt, line 1"), long])


def test_prompts_are_read_from_lines_and_from_records():
    lines = parse_requests("one\r\n\n  two\n", "p.txt", jsonl=False)
    assert [(r.text, r.where) for r in lines] == [
        ("one", "p.txt, line 1"),
        ("  two", "p.txt, line 3"),
    ]
    records = '{"query": "one", "id": "a"}\n\n{"query": "two", "completion": "x"}\n'
    found = parse_requests(records, "p.jsonl", jsonl=True)
    assert [(r.text, r.where, r.id) for r in found] == [
        ("one", "p.jsonl, line 1", "a"),
        ("two", "p.jsonl, line 3", ""),
    ]
    for text, jsonl, said in [
        ("\n \n", False, "p holds no prompt"),
        ("", True, "p is empty"),
        ('{"query": "a"}\n{"text": "b"}', True, "p, line 2: unknown field 'text'"),
        ('{"query": 3}', True, "p, line 1: query is 3, which is not text"),
    ]:
        with pytest.raises(UserError, match=said):
            parse_requests(text, "p", jsonl=jsonl)


@functools.cache
def chat_base():
    """The tiny base with a chat template."""
    folder = tiny.root() / "base-chat"
    shutil.copytree(tiny.base(), folder)
    (folder / "chat_template.jinja").write_text(TURNS)
    return folder


def test_a_run_in_a_chat_template_is_served_as_the_template_says():
    config = tiny.config(model__path=str(chat_base()), task__chat=True)
    parts = assemble(config)
    end = parts.tokenizer.tokenizer.eos_token_id
    assert parts.tokenizer.eos == end
    prompts, tokenizer = parts.prompts, parts.tokenizer
    example, shot = prompts.task.test[0], prompts.shots_for([prompts.task.test[0].query], 1)
    (row,) = prompts.request_rows([example], 1)
    shown = prompts.task.train[prompts.pool.index(shot[0][0])]
    turns = [
        ("system", tiny.TEMPLATE),
        ("user", shown.query),
        ("assistant", shown.completion),
        ("user", example.query),
    ]
    assert [*prompts.prefix(1.0), *row.tokens] == conversation_ids(tokenizer, turns)
    server = checkpoint_server(*load_base(config), 4, chat=True)
    asked = [Request(example.query, "here")]
    whole = conversation_ids(tokenizer, [("user", example.query)])
    assert whole[server.prefix :] == server.rows(asked)[0]
    config.eval.max_new_tokens = 4
    assert answers(server, asked) == answers(run_server(parts, None), asked)


REFUSED = {
    "neither": ((), "Give either --workdir=RUN or --model=CHECKPOINT"),
    "both": (("--workdir=a", "--model=b"), "Give either"),
    "shots without a run": (("--model=nano", "--shots=1"), "--shots belongs to --workdir"),
    "a format beside a run": (("--workdir=a", "--query_format=x"), "belongs to --model"),
    "a step of the base": (("--workdir=a", "--base", "--step=9"), "--step=9 names a checkpoint"),
    "a format without a query": (("--model=nano", "--query_format=x"), "never says {query}"),
    "raw and shots": (("--workdir=a", "--raw", "--shots=1"), "contradict each other"),
    "greedy top-k": (("--model=nano", "--top_k=5", f"--prompts={__file__}"), "temperature is 0"),
    "drafts of a batch": (
        ("--model=nano", "--draft_tokens=3", f"--prompts={__file__}"),
        "64 are decoded together",
    ),
    "no LoRA of a model": (("--model=nano", "--nomerge"), "--model has none"),
    "no LoRA of the base": (("--workdir=x", "--base", "--nomerge"), "--base has none"),
    "no prompts": (("--model=nano", "--prompts=/nowhere"), "/nowhere can't be read"),
    "no folder": (("--model=nano", "--out=/nowhere/out"), "there is no folder /nowhere"),
    "a folder that takes no file": (
        ("--model=/nowhere", "--out=/proc/out"),
        "--out=/proc/out can't be written",
    ),
    "there already": (("--model=nano", f"--out={__file__}"), "is there already"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_flags_that_contradict_are_told(case):
    arguments, said = REFUSED[case]
    code, out, err = tiny.run("-m", "pintern.generate", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error:")
    assert said in err
    assert len(err.splitlines()) == 1


@pytest.mark.slow
def test_a_file_of_answers_is_refused_at_a_terminal(tmp_path):
    """What is asked there is answered there, so that the file would never be written."""
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "pintern.generate", "--model=nano", f"--out={tmp_path / 'o'}"]
    found = subprocess.run(
        command, cwd=tiny.REPOSITORY, stdin=slave, capture_output=True, text=True, timeout=120
    )
    os.close(master)
    os.close(slave)
    assert found.returncode == 2, found.stderr
    assert "--prompts=FILE" in found.stderr


@pytest.mark.slow
def test_what_is_typed_wrongly_is_told_and_the_next_prompt_answered():
    master, slave = pty.openpty()
    os.write(master, b"size of \xff bikes\nbikes\n\x04")
    command = [sys.executable, "-m", "pintern.generate", "--model=nano", "--max_new_tokens=2"]
    found = subprocess.run(
        command,
        cwd=tiny.REPOSITORY,
        env=os.environ | {"LC_ALL": "C.UTF-8"},
        stdin=slave,
        capture_output=True,
        text=True,
        timeout=120,
    )
    os.close(master)
    os.close(slave)
    assert found.returncode == 0, found.stderr
    assert "error: This prompt, line 1: not UTF-8 (byte 8)" in found.stderr
    assert len(found.stdout.split("> ")) == 4  # as many prompts, and the end


FULL_DISK = """
import pathlib, resource, sys
from pintern.errors import report_user_errors
from pintern.generate import _whole_lines
@report_user_errors
def main():
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    with _whole_lines(pathlib.Path(sys.argv[1])) as out:
        for _ in range(1000):
            out.write("an answer".ljust(98) + chr(10))
main()
"""


def test_a_full_disk_leaves_whole_answers(tmp_path):
    code, _, err = tiny.run("-c", FULL_DISK, str(tmp_path / "out"))
    assert code == 2 and "answers that are in it are whole lines" in err
    text = (tmp_path / "out").read_text()
    assert text.count("\n") * 99 == len(text) == 20_000 // 99 * 99


@pytest.mark.slow
def test_a_run_that_is_scored_by_several_samples_can_be_asked_greedily(tmp_path):
    run, one = tmp_path / "run", tmp_path / "one.txt"
    shutil.copytree(tiny.trained_run(), run)
    config = read_config(run)
    config.eval.samples, config.eval.temperature = 3, 0.8
    (run / "config.json").write_text(to_json(config))
    parts, adapter = restored()
    asked = requests(parts)[:1]
    one.write_text(asked[0].text + "\n")
    code, said, err = tiny.run(
        "-m", "pintern.generate", f"--workdir={run}", f"--prompts={one}", "--temperature=0"
    )
    assert code == 0, err
    assert said == answers(run_server(parts, adapter), asked)[0]["completion"] + "\n"


@pytest.mark.slow
def test_from_the_command_line(tmp_path):
    run, out = tiny.trained_run(), tmp_path / "answers.jsonl"
    arguments = ["-m", "pintern.generate", f"--workdir={run}"]
    code, said, err = tiny.run(
        *arguments, f"--prompts={tiny.task() / 'test.jsonl'}", f"--out={out}", "--batch_rows=3"
    )
    assert code == 0, err
    assert said == ""
    assert "8 requests, " in err and "new tokens/s (batches of 3" in err
    parts, adapter = restored()
    assert tiny.lines(out) == answers(run_server(parts, adapter), requests(parts))
    one = tmp_path / "one.txt"
    one.write_text(parts.prompts.task.test[0].query + "\n")
    code, said, err = tiny.run(*arguments, f"--prompts={one}")
    assert code == 0, err
    assert said == tiny.lines(out)[0]["completion"] + "\n"
