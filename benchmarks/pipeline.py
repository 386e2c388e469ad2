"""Whether data keep ahead of training: records a second, and seconds to the first step.

    python -m benchmarks.pipeline
    python -m benchmarks.pipeline --records=5000     (quicker; below 20,000 nothing is kept)
    python -m benchmarks.pipeline --sample=1         (examples searched for every record; minutes)

Records are rendered, tokenised, given retrieved examples (BM25, each its two nearest) and made into
rows, as a run does before its first step; then everything once more, from what was kept on disk.
Examples are searched for every fortieth record among all of them, and that part's time is scaled;
a part's neighbours aren't kept, so that the second time token ids and index alone come from disk.
Beside it stands what training takes: rows a second of the bundled model at the company task. Start
times are of new processes: `--help`, and the quickstart's configuration to the end of its first
step, with empty and with filled cache of compiled programs.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import flags

from benchmarks import measure
from benchmarks.results import Result, as_usual, save, show
from pintern import cli

RECORDS = flags.DEFINE_integer("records", 100_000, "Labelled pairs of the pool.", lower_bound=3)
SAMPLE = flags.DEFINE_integer(
    "sample", 40, "Examples are searched for every so many-th record.", lower_bound=1
)
STEPS = flags.DEFINE_integer(
    "steps", 24, "Of the training run whose consumption is measured.", lower_bound=4
)
TARGET = 3.0
HELP_SECONDS, FIRST_STEP_SECONDS = 1.0, 15.0


def main(_: list[str]) -> None:
    """Prints one table, and the start times."""
    print(measure.versions(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        made, kept = records_per_second(home / "kept"), records_per_second(home / "kept")
        cold, _ = first_step(home, "cold")
        warm, consumed = first_step(home, "warm")
        helped = statistics.median(help_seconds() for _ in range(5))
    results = [
        Result("pipeline", made / consumed, made, consumed, None, "records/s"),
        Result("pipeline_kept", kept / consumed, kept, consumed, None, "records/s"),
        Result("start_help", HELP_SECONDS / helped, helped, HELP_SECONDS, None, "s"),
        Result("start_first_step", FIRST_STEP_SECONDS / warm, warm, FIRST_STEP_SECONDS, None, "s"),
    ]
    show(results, {"pipeline": TARGET, "start_help": 1.0, "start_first_step": 1.0})
    print(
        f"peer: rows/s that training takes, or the seconds allowed; the first step with an empty "
        f"cache came after {cold:.1f} s"
    )
    if as_usual("records", "sample", "steps"):
        save(results, "cpu")


def records_per_second(cache: Path) -> float:
    """Of everything between texts and rows of token ids."""
    os.environ["XDG_CACHE_HOME"] = str(cache)
    from pintern.assemble import load_base
    from pintern.config import default_config
    from pintern.paths import user_cache
    from pintern.prompts.pipeline import pool_pieces
    from pintern.prompts.retrievers.make import make_retriever
    from pintern.prompts.rows import Renderer

    task = larger_task()
    _, tokenizer = load_base(default_config())
    began = time.perf_counter()
    renderer = Renderer.create(tokenizer, task)
    pool = pool_pieces(renderer, task.train, user_cache() / "tokens")
    queries = [example.query for example in task.train]
    retriever = make_retriever(
        "bm25", queries, seed=0, encoder=None, cache=user_cache() / "vectors"
    )
    searched = time.perf_counter()
    drawn = range(0, len(queries), SAMPLE.value)
    found = retriever.neighbours([queries[i] for i in drawn], 2, exclude=drawn)
    for i, shots in zip(drawn, found, strict=True):
        renderer.row(pool[i], [pool[j] for j in shots])
    ended = time.perf_counter()
    return len(queries) / (searched - began + (ended - searched) * len(queries) / len(drawn))


def larger_task():
    """The company task with as many pairs as asked for: its own, told apart by a number."""
    import dataclasses

    from pintern.tasks.company import company_task

    task = company_task()
    count = len(task.train)
    pairs = [
        dataclasses.replace(e, query=f"{e.query} case {i // count}")
        for i, e in ((i, task.train[i % count]) for i in range(RECORDS.value))
    ]
    return dataclasses.replace(task, train=pairs)


def first_step(home: Path, name: str) -> tuple[float, float]:
    """Seconds from the start of a new process to its first step, and rows a second afterwards."""
    workdir = home / name
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(home / "programs")}
    command = [
        *(sys.executable, "-m", "pintern.train", f"--workdir={workdir}"),
        "--config=experiments/promptintern/company.py",
        *(f"--config.train.steps={STEPS.value}", "--config.train.log_every=1"),
    ]
    began, first = time.perf_counter(), None
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as process:
        while process.poll() is None:
            time.sleep(0.02)
            written = workdir / "metrics.jsonl"
            if first is None and written.is_file() and written.stat().st_size:
                first = time.perf_counter() - began
    if process.returncode or first is None:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}.")
    rows = json.loads((workdir / "config.json").read_text())["train"]["batch_rows"]
    timings = [json.loads(x) for x in (workdir / "timings.jsonl").read_text().splitlines()]
    return first, rows / statistics.median(line["seconds"] for line in timings[1:])


def help_seconds() -> float:
    """Of `python -m pintern.train --help` in a process of its own."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "pintern.train", "--help"], check=True, capture_output=True
    )
    return time.perf_counter() - began


if __name__ == "__main__":
    cli.run(main)
