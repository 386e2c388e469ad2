"""PromptIntern's main table at full size: thirteen arms on MBPP, NL2F and NL2Bash, three models.

    FILE=experiments/studies/promptintern_main.py
    python -m pintern.study --study=$FILE:DATA --workdir=runs/main

DATA is a folder that holds `mbpp/`, `nl2formula/` and `nl2bash/`. It needs an accelerator for
weeks; `--list` shows the cells, `--only` takes some. `promptintern_main_reduced.py` is the same
comparison in a size that two cores run.
"""

from experiments.studies.rows import ARMS, DIRECT, ICL, OURS, PROMPTINTERN, ZERO_SHOT, row
from pintern.studies.diagnostics import ServingLatency
from pintern.studies.study import PaperTable, Study

# Where only parts of a recipe are public: rank and epochs from PromptIntern's hosted runs;
# optimizer, warm-up and rate (its models of 8B) from SKIntern (2409.13183), the closest complete
# recipe.
RECIPE = {
    "adapter.rank": 32,
    "adapter.alpha": 64.0,
    "train.batch_rows": 16,
    "train.accumulate": 4,
    "train.warmup": 0.1,
    "curriculum.stages": 4,
    "curriculum.final_share": 0.0,
    "checkpoint.every": 200,
    # These tasks have no query log: teachers speak on the labelled completions.
    "distill.unlabelled": 0,
}
LORA_RATE = 5e-5
SOFT_PROMPTS = ("prompt tuning", "IPT")  # with a rate of their own, see experiments/arms/base.py
EPOCHS = 10
# Beside the tests against direct fine-tuning: against the prompted base, and each half of ours.
CONTRASTS = ((OURS, ICL), (OURS, PROMPTINTERN), (OURS, "context distillation"))

PAPER = PaperTable(
    source="PromptIntern (2407.02211), main table",
    columns=("MBPP (pass@1)", "NL2F (exact match)", "NL2Bash (BLEU)"),
    rows={
        "PromptIntern": (78.1, 81.4, 70.5),
        "LLMLingua-2": (72.5, 70.4, 62.8),
        "GPT-4 as compressor": (61.8, 59.6, 59.5),
    },
    note=(
        "The paper's headline besides: 90 % fewer tokens, 4.2× speed, 88.3 % less cost (its review "
        "version gives ranges: 67–90 %, 1.1–5.1×, 39–90 %). These figures were read in a public "
        "source that doesn't tell which of the paper's models they are of."
    ),
)


def _recipe(arm: str) -> dict[str, object]:
    return RECIPE if arm in SOFT_PROMPTS else {**RECIPE, "train.learning_rate": LORA_RATE}


def _task(kind: str, data: str, *, pairs: int, tokens: int) -> dict[str, object]:
    """What a task changes: ten epochs over at most so many labelled pairs, the longest answer."""
    return {
        "task.kind": kind,
        "task.data": f"{data}/{kind}",
        "task.max_train": pairs,
        "train.steps": round(EPOCHS * pairs / RECIPE["train.batch_rows"]),
        "eval.max_new_tokens": tokens,
    }


def get_study(data: str = "../shared/data") -> Study:
    """The full grid.

    Args:
      data: folder of the data sets.
    """
    return Study(
        name="promptintern-main",
        question=(
            "PromptIntern's main table, with every arm that it should be compared with: does a "
            "model that was weaned off its prompt answer as well as one that reads it, for how "
            "many tokens, how much time and what money?"
        ),
        rows=tuple(
            row(arm, _recipe(arm), measures=(ServingLatency(),), once=False) for arm in ARMS
        ),
        tasks={
            "MBPP": _task("mbpp", data, pairs=374, tokens=256),
            "NL2F": _task("nl2formula", data, pairs=8000, tokens=128),
            "NL2Bash": _task("nl2bash", data, pairs=8090, tokens=96),
        },
        models={
            "Llama-2-7B": {
                "model.path": "meta-llama/Llama-2-7b-hf",
                "model.dtype": "bfloat16",
                "model.remat": True,
            },
            "Llama-2-13B": {
                "model.path": "meta-llama/Llama-2-13b-hf",
                "model.dtype": "bfloat16",
                "model.remat": True,
            },
            "Mixtral-8x7B": {
                "model.path": "mistralai/Mixtral-8x7B-v0.1",
                "model.dtype": "bfloat16",
                "model.quantize": "int8",
                "model.remat": True,
            },
        },
        reference=DIRECT,
        none=ZERO_SHOT,
        prompted=ICL,
        contrasts=CONTRASTS,
        paper=(PAPER,),
        notes=(
            "Arms are trained for equal optimizer steps over equal examples: ten epochs, of NL2F "
            "over its first 8,000 labelled pairs, of NL2Bash over 8,090, as many as its paper has. "
            "Learning rate, batch and warm-up aren't public for PromptIntern's open models; see "
            "the file for what stands in for them.",
        ),
        usd_per_hour=4.0,
    )
