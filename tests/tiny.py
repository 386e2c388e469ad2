"""A run that takes seconds: a random Llama of width 32, a task of a few files, and its config."""

import atexit
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
from ml_collections import ConfigDict

from pintern.assemble import Parts, assemble
from pintern.config import default_config, to_json
from pintern.models.load import init_model, save_model
from pintern.training.loop import train

REPOSITORY = Path(__file__).parents[1]
TEMPLATE = """\
You answer the counter of a small parts store. Name the shelf of the part, and nothing else.

- bolts lie on shelf four, nuts on shelf seven, and washers on shelf nine
- red parts lie one shelf higher, blue parts one shelf lower than that
- of large parts only the shelf's number counts, of small ones its letter too
- never answer with a whole sentence
"""
_PARTS = ("bolt", "nut", "washer", "spring", "gear", "pin", "rivet", "hinge", "bracket", "screw")
_COLOURS = ("red", "blue", "green", "grey")
CONTEXT = 512


def _examples() -> list[dict[str, str]]:
    pairs = [(part, colour) for part in _PARTS for colour in _COLOURS]
    return [
        {
            "query": f"Where is the {colour} {part}?",
            "completion": f"shelf {(3 * i) % 10}{' left' * (i % 2)}",
            "id": f"example-{i}",
        }
        for i, (part, colour) in enumerate(pairs)
    ]


@functools.cache
def root() -> Path:
    """Folder that all tests of a session share; removed at its end."""
    folder = Path(tempfile.mkdtemp(prefix="pintern-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def base(context: int = CONTEXT, seed: int = 0) -> Path:
    """Checkpoint with its tokenizer; weights large enough for attention to be far from uniform."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    directory = root() / f"base-{context}-{seed}"
    directory.mkdir()
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    shown = [f"Question: {e['query']}\nAnswer: {e['completion']}\n" for e in _examples()]
    # Words are single tokens, so that all rows fall into one width: each is a program to compile.
    tokenizer.train_from_iterator([TEMPLATE, *shown] * 2, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(directory)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": len(fast),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": context,
        "bos_token_id": fast.bos_token_id,
        "eos_token_id": fast.eos_token_id,
    }
    made = init_model(config, seed)
    leaves, graph = jax.tree.flatten(made.decoder)
    louder = jax.tree.unflatten(graph, [6 * x if x.std() > 0 else x for x in leaves])
    save_model(directory, louder, made.family, config, dtype="float32")
    return directory


@functools.cache
def task() -> Path:
    """Folder of the task: template.txt, 24 labelled pairs, 8 test pairs, 8 queries of a log."""
    directory = root() / "task"
    directory.mkdir()
    (directory / "template.txt").write_text(TEMPLATE)
    examples = _examples()
    parts = {"train": examples[:24], "test": examples[24:32]}
    parts["log"] = [{"query": e["query"]} for e in examples[32:]]
    for name, rows in parts.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (directory / f"{name}.jsonl").write_text(text)
    return directory


def config(**changes: object) -> ConfigDict:
    """A run of eight steps; `group__field=value` changes a field."""
    made = default_config()
    made.name = "tiny"
    made.model.path = str(base())
    made.task.kind = "files"
    made.task.template = str(task() / "template.txt")
    for name in ("train", "test"):
        made.task[name] = str(task() / f"{name}.jsonl")
    made.task.unlabelled = str(task() / "log.jsonl")
    made.prompt.compressor = "truncation"
    made.prompt.max_shots = 1
    made.curriculum.stages = 2
    made.adapter.rank = 2
    made.adapter.alpha = 4.0
    made.train.steps = 8
    made.train.batch_rows = 4
    made.train.log_every = 1
    made.checkpoint.every = 2
    made.eval.max_new_tokens = 4
    made.eval.batch_rows = 8
    for name, value in changes.items():
        group, _, field = name.partition("__")
        if field:
            made[group][field] = value
        else:
            made[group] = value
    return made


@functools.cache
def parts() -> Parts:
    """Base, tokenizer and prompts of the unchanged config."""
    return assemble(config())


@functools.cache
def trained_run() -> Path:
    """Folder of the unchanged config's run, complete. Tests that write to a run copy it."""
    workdir = root() / "trained"
    assert train(config(), workdir)
    return workdir


def copy_of(run: Path, to: Path) -> Path:
    """A run that may be written to."""
    shutil.copytree(run, to)
    return to


def config_file(directory: Path, made: ConfigDict) -> Path:
    """An experiment file whose get_config() is this config."""
    (directory / "config.json").write_text(to_json(made))
    path = directory / "experiment.py"
    path.write_text(
        "from pathlib import Path\n\nfrom pintern.config import from_json\n\n\n"
        "def get_config():\n"
        "    return from_json((Path(__file__).parent / 'config.json').read_text())\n"
    )
    return path


def environment() -> dict[str, str]:
    """Of a process of its own; where compiled programs lie, `conftest` has said."""
    return os.environ | {"JAX_PLATFORMS": "cpu"}


def start(*arguments: str) -> subprocess.Popen:
    """`python ...` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `python ...`."""
    process = start(*arguments)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def pid_of_process(launcher: int, number: int) -> int:
    """Of a process that `launch.local` started."""
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(launcher)], capture_output=True, text=True
    ).stdout.split()
    for pid in map(int, children):
        given = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if f"PINTERN_PROCESS_ID={number}".encode() in given:
            return pid
    raise AssertionError(children)


def lines(path: Path) -> list[dict]:
    """Objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
