"""Completions for prompts of your own, from a run or from any checkpoint.

    python -m pintern.generate --workdir=runs/first                      (asks at the terminal)
    echo "How many orders?" | python -m pintern.generate --workdir=runs/first
    python -m pintern.generate --workdir=runs/first --prompts=queries.jsonl --out=answers.jsonl
    python -m pintern.generate --model=DIR --temperature=0.8 --top_p=0.95 --seed=1

Prompts come from `--prompts`, a text file of one a line or JSONL of {"query": ...}, or from
standard input. A run's queries are written as in its training, behind the prompt of its config
(`--keep_rate=1 --shots=2` puts the whole prompt back); `--raw` takes the text as it is, and so does
`--model`, unless `--query_format` or `--chat` says how to write it. Each prompt stands alone: there
is no conversation.

One prompt is answered token by token; several are decoded in batches and written as JSONL. What is
drawn for a prompt depends on the seed and on its number, and not on what it is batched with.

`--draft_tokens=3` guesses tokens ahead, from the answers of a run's labelled pairs and from the
prompt itself, and checks them in one pass. The answer is the same, sooner where guesses are right.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from absl import flags

from pintern import cli
from pintern.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from pintern.evaluation.serving import Server
    from pintern.prompts.requests import Request

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run: its adapter on its base.")
MODEL = flags.DEFINE_string("model", None, "Or a checkpoint: a folder, org/name, or nano.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint of the run; the latest by default.")
BASE = flags.DEFINE_boolean("base", False, "The run's base model, adapter off.")
MERGE = flags.DEFINE_boolean("merge", True, "Fold LoRA into the weights first, as an export does.")
PROMPTS = flags.DEFINE_string("prompts", None, "File of prompts; default: standard input.")
JSONL = flags.DEFINE_boolean("jsonl", None, "Prompts are JSONL; default: by the file's name.")
OUT = flags.DEFINE_string("out", None, "JSONL file to write; it must not be there yet.")
RAW = flags.DEFINE_boolean("raw", False, "Take the text as it is, behind the start token alone.")
KEEP_RATE = flags.DEFINE_float("keep_rate", None, "τ of the template; default: config.eval.")
SHOTS = flags.DEFINE_integer("shots", None, "Retrieved examples; default: config.eval.")
QUERY_FORMAT = flags.DEFINE_string(
    "query_format", None, "With --model: how a query is written, e.g. 'Question: {query} SQL:'."
)
CHAT = flags.DEFINE_boolean("chat", False, "With --model: a query is a user's turn of a chat.")
TEMPERATURE = flags.DEFINE_float(
    "temperature", None, "0 takes the likeliest token; default: config.eval.", lower_bound=0.0
)
TOP_K = flags.DEFINE_integer("top_k", 0, "Draw from so many tokens; 0 is all.", lower_bound=0)
TOP_P = flags.DEFINE_float(
    "top_p", 1.0, "Draw from the tokens that hold this share.", lower_bound=0.0, upper_bound=1.0
)
SEED = flags.DEFINE_integer("seed", 0, "Of the draws.", lower_bound=0, upper_bound=2**32 - 1)
MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", None, "Longest completion; default: config.eval.", lower_bound=1
)
DRAFT_TOKENS = flags.DEFINE_integer(
    "draft_tokens",
    None,
    "Guessed ahead where one prompt is answered at a time; default: config.eval.",
    lower_bound=0,
)
BATCH_ROWS = flags.DEFINE_integer(
    "batch_rows", None, "Prompts decoded at once; default: config.eval.", lower_bound=1
)

_BATCHES_A_WRITE = 16  # so that a kill loses little


def main(_: list[str]) -> None:
    """Answers the prompts that the flags name."""
    check_flags()
    interactive = PROMPTS.value is None and sys.stdin.isatty()
    requests = [] if interactive else read_requests()
    if WORKDIR.value:
        from pintern.remote import local_workdir

        with local_workdir(WORKDIR.value) as workdir:
            config = serving_config(workdir, len(requests))
            server = load_server(config, workdir)
    else:
        config = serving_config(None, len(requests))
        server = load_server(config, None)
    if interactive:
        answer_terminal(server)
    elif len(requests) == 1 and OUT.value is None:
        answer_one(server, requests[0])
    else:
        answer_many(server, requests, min(config.eval.batch_rows, len(requests)))


def check_flags() -> None:
    """Refuses options that contradict each other, before anything is loaded."""
    if (WORKDIR.value is None) == (MODEL.value is None):
        raise UserError("Give either --workdir=RUN or --model=CHECKPOINT.", "See --help.")
    of_run = {"step": STEP, "keep_rate": KEEP_RATE, "shots": SHOTS, "base": BASE}
    of_model = {"query_format": QUERY_FORMAT, "chat": CHAT}
    for name, flag in (of_run if MODEL.value else of_model).items():
        if flag.value not in (None, False):
            wanted = "--workdir" if MODEL.value else "--model"
            raise UserError(f"--{name} belongs to {wanted}.", "Leave one of the two out.")
    for name, flag in {"keep_rate": KEEP_RATE, "shots": SHOTS, **of_model}.items():
        if RAW.value and flag.value not in (None, False):
            raise UserError(f"--raw and --{name} contradict each other.", "Leave one of them out.")
    if not MERGE.value and (MODEL.value or BASE.value):
        raise UserError(
            f"--nomerge keeps a run's LoRA apart, and --{'model' if MODEL.value else 'base'} has "
            "none.",
            "Leave it out.",
        )
    if BASE.value and STEP.value is not None:
        raise UserError(
            f"--step={STEP.value} names a checkpoint, and --base leaves it out.",
            "Leave one of the two out.",
        )
    if CHAT.value and QUERY_FORMAT.value:
        raise UserError(
            "--chat and --query_format contradict each other.", "Leave one of them out."
        )
    if QUERY_FORMAT.value and "{query}" not in QUERY_FORMAT.value:
        raise UserError(f"--query_format={QUERY_FORMAT.value!r} never says {{query}}.")
    if not TOP_P.value > 0:  # NaN neither
        raise UserError(
            f"--top_p={TOP_P.value:g} leaves no token to draw.", "Use --temperature=0 to be greedy."
        )
    if JSONL.value is not None and PROMPTS.value is None and sys.stdin.isatty():
        raise UserError(
            "--jsonl says how a file or a pipe is read; at a terminal a line is a prompt.",
            "Leave it out, or give --prompts=FILE.",
        )
    if OUT.value is not None:
        out = Path(OUT.value)
        if out.exists():
            raise UserError(
                f"--out={out} is there already.", "Nothing is overwritten: name another."
            )
        if not out.parent.is_dir():
            raise UserError(f"--out={out}: there is no folder {out.parent}.")
        if PROMPTS.value is None and sys.stdin.isatty():
            raise UserError(
                f"--out={out} takes no answers to what is asked at a terminal.",
                "Give --prompts=FILE, or pipe the prompts in.",
            )
        with _writing(out):
            out.open("x").close()
            out.unlink()  # made when there is an answer


def serving_config(workdir: Path | None, requests: int) -> ConfigDict:
    """The run's config, or the default one around `--model`, with what the flags change.

    Args:
      workdir: of the run.
      requests: prompts to answer; 0 where they are asked at the terminal.

    Raises:
      UserError: flags that would do nothing beside the others.
    """
    from pintern.config import default_config, validate
    from pintern.training.workdir import read_config

    if workdir is not None:
        config = read_config(workdir)
    else:
        config = default_config()
        config.model.path = MODEL.value
    flags_of = {
        "keep_rate": KEEP_RATE,
        "shots": SHOTS,
        "temperature": TEMPERATURE,
        "max_new_tokens": MAX_NEW_TOKENS,
        "batch_rows": BATCH_ROWS,
        "draft_tokens": DRAFT_TOKENS,
    }
    for field, flag in flags_of.items():
        if flag.value is not None:
            config.eval[field] = flag.value
    config.eval.samples = 1  # a prompt gets one answer, which may well be greedy
    if (TOP_K.value or TOP_P.value < 1) and config.eval.temperature == 0:
        raise UserError(
            "--top_k and --top_p choose among tokens that are drawn, but the temperature is 0.",
            "Give --temperature=1, or leave them out.",
        )
    together = min(config.eval.batch_rows, requests)
    if DRAFT_TOKENS.value and together > 1:
        raise UserError(
            f"--draft_tokens={DRAFT_TOKENS.value} guesses where one prompt is answered at a time, "
            f"but {together} are decoded together.",
            "Give --batch_rows=1, or leave it out.",
        )
    return validate(config, recorded=True)


def load_server(config: ConfigDict, workdir: Path | None) -> Server:
    """The model that the flags name."""
    from pintern.evaluation.serving import checkpoint_server, run_server

    draw = {"top_k": TOP_K.value, "top_p": TOP_P.value}
    if workdir is not None:
        from pintern.training.restore import restore_run

        parts, adapter, _ = restore_run(workdir, config, STEP.value, base=BASE.value)
        return run_server(parts, adapter, raw=RAW.value, merge=MERGE.value, **draw)
    from pintern.assemble import load_base

    return checkpoint_server(
        *load_base(config),
        config.eval.max_new_tokens,
        query_format=QUERY_FORMAT.value or "",
        chat=CHAT.value,
        temperature=config.eval.temperature,
        draft_tokens=config.eval.draft_tokens,
        **draw,
    )


def read_requests() -> list[Request]:
    """Prompts of `--prompts`, or of standard input."""
    from pintern.prompts.requests import parse_requests
    from pintern.prompts.text import decode_text, read_text

    where = PROMPTS.value or "standard input"
    if PROMPTS.value is not None:
        text = read_text(where)
    else:
        text = decode_text(sys.stdin.buffer.read(), where)
    jsonl = where.endswith(".jsonl") if JSONL.value is None else JSONL.value
    return parse_requests(text, where, jsonl=jsonl)


def answer_terminal(server: Server) -> None:
    """Asks for prompts until the input ends."""
    from pintern.prompts.requests import Request
    from pintern.prompts.text import decode_text

    print("One prompt a line; end with Ctrl-D.", file=sys.stderr)
    try:
        for number in itertools.count():
            text = input("> ")
            if not text.strip():
                continue
            try:
                decode_text(text.encode("utf-8", "surrogateescape"), "This prompt")
                answer_one(server, Request(text, "This prompt"), number)
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
    except (EOFError, KeyboardInterrupt):
        print(file=sys.stderr)


def answer_one(server: Server, request: Request, number: int = 0) -> None:
    """Prints a completion token by token."""
    (row,) = server.rows([request])
    for piece in server.stream(row, seed=SEED.value, index=number):
        print(piece, end="", flush=True)
    print(flush=True)


def answer_many(server: Server, requests: Sequence[Request], batch_rows: int) -> None:
    """Decodes in batches, and writes JSONL to `--out` or to standard output."""
    from pintern.progress import Progress

    rows = server.rows(requests)
    step = batch_rows * _BATCHES_A_WRITE
    began, made = time.monotonic(), 0
    with contextlib.ExitStack() as stack:
        out = sys.stdout
        if OUT.value is not None:
            out = stack.enter_context(_whole_lines(Path(OUT.value)))
        bar = stack.enter_context(Progress("generate", len(requests), units="requests"))
        for first in range(0, len(requests), step):
            found = server.generator(
                rows[first : first + step],
                batch_rows=batch_rows,
                seed=SEED.value,
                first_index=first,
                progress=bar.advance,
            )
            made += sum(map(len, found))
            for request, ids in zip(requests[first : first + step], found, strict=True):
                out.write(json.dumps(server.answer(request, ids), ensure_ascii=False) + "\n")
            out.flush()
    took = time.monotonic() - began
    print(
        f"{len(requests)} requests, {made} new tokens in {took:.1f} s: "
        f"{len(requests) / took:.1f} requests/s, {made / took:.0f} new tokens/s "
        f"(batches of {batch_rows}, compilation included)",
        file=sys.stderr,
    )


@contextlib.contextmanager
def _whole_lines(out: Path) -> Iterator[TextIO]:
    """A new file; where its disk fills up, what was written of the next answer is cut off."""
    with _writing(out):
        file = out.open("x", encoding="utf-8")
        try:
            with file:
                yield file
        except OSError:  # after closing, which writes once more
            os.truncate(out, out.read_bytes().rfind(b"\n") + 1)
            raise


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Tells that `--out` can't be written: a folder that takes no file, a full disk."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"--out={out} can't be written: {error.strerror or error}.",
            "Free space, or name another file; answers that are in it are whole lines.",
        ) from error


if __name__ == "__main__":
    cli.run(main)
