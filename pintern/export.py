"""Takes a trained adapter to where it is served.

    python -m pintern.export --workdir=runs/first --format=peft --out=exports/first --check

`peft` writes what PEFT and vLLM load: LoRA, and a soft prompt beside it where there is one.
`merged` writes the base with LoRA folded in, for whatever serves plain checkpoints; `soft_prompt`
writes PEFT's prompt tuning. Each holds README.md (a model card) and pintern.json (which base it
belongs to). `--check` reads the files back and compares logits; `--lint=vllm` says whether vLLM
loads them. Either ends with 1 where the answer is no.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from pintern import cli

if TYPE_CHECKING:
    from pintern.assemble import Parts
    from pintern.interop.model_card import Facts, Score
    from pintern.interop.write import Export

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
FORMAT = flags.DEFINE_enum(
    "format", None, ["peft", "merged", "soft_prompt"], "What to write.", required=True
)
OUT = flags.DEFINE_string("out", None, "Folder of the export; absent or empty.", required=True)
STEP = flags.DEFINE_integer("step", None, "Checkpoint to export; the latest by default.")
DTYPE = flags.DEFINE_enum(
    "dtype",
    "auto",
    ["auto", "float32", "bfloat16", "float16"],
    "Of storage; auto is float32 for adapters and the base's own for merged weights.",
)
MAX_SHARD_BYTES = flags.DEFINE_integer(
    "max_shard_bytes", 5_000_000_000, "Merged weights beyond this are sharded.", lower_bound=1
)
CHECK = flags.DEFINE_boolean("check", False, "Read the export back and compare logits.")
LINT = flags.DEFINE_enum("lint", None, ["vllm"], "Say whether this server loads the export.")

_CHECKED_ROWS, _CHECKED_TOKENS = 8, 48
# Rows whose length is measured for the card: a mean, not a census.
_MEASURED_ROWS = 200


def main(_: list[str]) -> None:
    """Exports the checkpoint that the flags name."""
    from pintern.remote import local_workdir

    out = _out_folder(OUT.value)
    with local_workdir(WORKDIR.value) as workdir:
        good = _export(workdir, out)
    if not good:
        sys.exit(1)


def _out_folder(name: str) -> Path:
    """The folder by `--out`, which is made whole beside its place and then put there."""
    from pintern.errors import UserError
    from pintern.remote import is_remote

    if is_remote(name):
        raise UserError(
            f"--out={name} is in an object store; an export goes to a folder of this machine.",
            "Name one, and copy it there once it is written.",
        )
    if not Path(name).name:
        raise UserError(f"--out={name} has no name of its own.", "Name a folder: --out=exports/a.")
    return Path(name)


def _export(workdir: Path, out: Path) -> bool:
    """Whether what was exported also passes the checks that were asked for."""
    from pintern.config import trains
    from pintern.errors import UserError
    from pintern.training.workdir import read_config

    config = read_config(workdir)
    if not trains(config):
        raise UserError(
            f"{workdir} trains nothing: it holds evaluations of the base as it is.",
            "There is no adapter to export; serve the base itself.",
        )
    if not config.model.random_init:
        # Whatever it was trained in: no base is stored in more, so merging loses nothing.
        config.model.dtype = "float32"

    from pintern.interop.compare import compare
    from pintern.interop.model_card import render_card
    from pintern.interop.vllm import lint_vllm
    from pintern.interop.write import write_export
    from pintern.training.restore import restore_run

    parts, adapter, step = restore_run(workdir, config, STEP.value)
    export = _plan(parts, adapter, FORMAT.value, DTYPE.value)
    facts = _facts(parts, export, FORMAT.value, workdir, step)
    export.details.update(_details(facts, config.seed))
    write_export(out, FORMAT.value, export, render_card(facts))
    print(f"Wrote {FORMAT.value} of step {step} to {out}: {', '.join(_files(out))}")

    good = True
    if CHECK.value:
        rows = [row[:_CHECKED_TOKENS] for row in _requests(parts)[:_CHECKED_ROWS]]
        found = compare(out, parts.checkpoint, adapter, rows, export.dtype)
        print(f"check: {found}")
        good = found.within
    if LINT.value:
        verdict = lint_vllm(out)
        print(f"vLLM {'loads' if verdict.loads else 'does NOT load'} it:")
        print("\n".join(f"  {line}" for line in verdict.lines))
        good = good and verdict.loads
    return good


def _plan(parts: "Parts", adapter: Any, form: str, dtype: str) -> "Export":
    import jax.numpy as jnp

    from pintern.errors import UserError
    from pintern.interop.merged import stored_dtype
    from pintern.interop.write import Export

    fields, model = parts.config.adapter, parts.config.model
    if model.random_init and form != "merged":
        raise UserError(
            "The base was drawn from the run's seed and lies in no file: nobody could load an "
            "adapter on it.",
            "Use --format=merged.",
        )
    if dtype == "auto":
        merged = form == "merged" and not model.random_init
        dtype = stored_dtype(parts.checkpoint.directory) if merged else "float32"
    # A folder by its whole path: a loader of the export stands elsewhere.
    hub = model.path != "nano" and not Path(model.path).exists()
    return Export(
        adapter=adapter,
        checkpoint=parts.checkpoint,
        base_name=model.path if hub else str(parts.checkpoint.directory.absolute()),
        revision=model.revision if hub else "",
        alpha=fields.alpha,
        rank_stabilised=fields.rank_stabilised,
        dtype=jnp.dtype(dtype),
        max_shard_bytes=MAX_SHARD_BYTES.value,
    )


def _requests(parts: "Parts", *, whole: bool = False) -> list[list[int]]:
    """Token ids of test requests as they are served, or with the `whole` prompt and its shots."""
    config, test = parts.config, parts.prompts.task.test[:_MEASURED_ROWS]
    rate, shots = config.eval.keep_rate, config.eval.shots
    if whole:
        rate, shots = 1.0, max(config.prompt.max_shots, shots)
    prefix = parts.prompts.prefix(rate)
    return [prefix + row.tokens for row in parts.prompts.request_rows(test, shots)]


def _facts(parts: "Parts", export: "Export", form: str, workdir: Path, step: int) -> "Facts":
    from pintern.interop.model_card import Facts
    from pintern.interop.write import parts_of

    config, task, adapter = parts.config, parts.prompts.task, export.adapter
    trained = []
    if adapter.lora:
        rank = next(iter(adapter.lora.values())).a.shape[-1]
        stabilised = ", rsLoRA" if export.rank_stabilised else ""
        trained.append(
            f"LoRA on {', '.join(adapter.lora)} (rank {rank}, α {export.alpha:g}{stabilised})"
        )
    if adapter.num_virtual_tokens:
        trained.append(f"soft prompt of {adapter.num_virtual_tokens} virtual tokens")
    before = [len(ids) for ids in _requests(parts, whole=True)]
    after = [len(ids) + adapter.num_virtual_tokens for ids in _requests(parts)]
    return Facts(
        name=config.name,
        task=task.name,
        base=export.base,
        parts=parts_of(form, adapter),
        trained=", ".join(trained),
        step=step,
        template=task.template,
        prompt=parts.prompts.rung(config.eval.keep_rate).text,
        shots=config.eval.shots,
        query_format=task.format.query,
        example=task.test[0].query,
        bos=parts.tokenizer.bos,
        max_new_tokens=config.eval.max_new_tokens,
        tokens_before=sum(before) / len(before),
        tokens_after=sum(after) / len(after),
        scores=_scores(workdir, step),
        measured=_measured(workdir),
        chat_ends=(parts.tokenizer.eos, *parts.tokenizer.also_end) if task.chat else (),
    )


def _scores(workdir: Path, step: int) -> list["Score"]:
    """Evaluations of this step and of the base, from the run's eval/."""
    from pintern.interop.model_card import Score

    found = []
    for path in sorted((workdir / "eval").glob("*/scores.json")):
        who = path.parent.name.split("-")[0]
        if who not in ("base", str(step)):
            continue
        scores = json.loads(path.read_text())
        prompt, tokens = scores["prompt"], scores["tokens"]
        behind = f"τ={prompt['keep_rate']:g}, {prompt['shots']} shots"
        if not prompt["keep_rate"] and not prompt["shots"]:
            behind = "query alone"
        decoding = scores.get("decoding", {})
        if decoding.get("temperature"):
            behind += f", sampled at {decoding['temperature']:g}"
        found.append(
            Score(
                what=f"{'base' if who == 'base' else 'this export'}, {behind}",
                metric=scores["metric"],
                value=scores["score"],
                interval=scores["interval"],
                tokens=tokens["template"] + tokens["examples"] + tokens["query"],
            )
        )
    return found


def _measured(workdir: Path) -> dict[str, Any] | None:
    """The run's entry in the summary of `run_arms`, if it is an arm of one (FOLDER/arms/ARM)."""
    from pintern.folders import plain_name

    arms_folder = workdir.absolute().parent
    path = arms_folder.parent / "report" / "summary.json"
    if arms_folder.name != "arms" or not path.is_file():
        return None
    arms = json.loads(path.read_text())["arms"]
    folders = {plain_name(name): name for name in arms}
    return arms.get(folders.get(workdir.absolute().name))


def _details(facts: "Facts", seed: int) -> dict[str, Any]:
    """What pintern.json tells beside the base."""
    return {
        "run": {
            "name": facts.name,
            "task": facts.task,
            "step": facts.step,
            "seed": seed,
        },
        "adapter": facts.trained,
        "prompt": {
            "text": facts.prompt,
            "shots": facts.shots,
            "query_format": None if facts.chat_ends else facts.query_format,
            "chat": bool(facts.chat_ends),
            "bos": list(facts.bos),
        },
        "prompt_tokens": {
            "before": round(facts.tokens_before, 2),
            "after": round(facts.tokens_after, 2),
        },
        "scores": [
            {"what": score.what, "metric": score.metric, "score": score.value}
            for score in facts.scores
        ],
    }


def _files(out: Path) -> list[str]:
    """Every file of the export, from its folder on."""
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())


if __name__ == "__main__":
    cli.run(main)
