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

# Where only parts of a recipe are public: rank, epochs and context from PromptIntern's hosted runs;
# optimizer, warm-up and rates from SKIntern (2409.13183), the closest complete recipe.
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
EPOCHS, ROWS = 10, 16
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


def steps(pairs: int) -> int:
    """Optimizer steps of ten epochs over so many labelled pairs."""
    return round(EPOCHS * pairs / ROWS)


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
        rows=tuple(row(arm, RECIPE, measures=(ServingLatency(),), once=False) for arm in ARMS),
        tasks={
            "MBPP": {
                "task.kind": "mbpp",
                "task.data": f"{data}/mbpp",
                "train.steps": steps(374),
                "eval.max_new_tokens": 256,
            },
            "NL2F": {
                "task.kind": "nl2formula",
                "task.data": f"{data}/nl2formula",
                "train.steps": steps(8000),
                "eval.max_new_tokens": 128,
            },
            "NL2Bash": {
                "task.kind": "nl2bash",
                "task.data": f"{data}/nl2bash",
                "train.steps": steps(8090),
                "eval.max_new_tokens": 96,
            },
        },
        models={
            "Llama-2-7B": {
                "model.path": "meta-llama/Llama-2-7b-hf",
                "model.dtype": "bfloat16",
                "model.remat": True,
                "train.learning_rate": 1e-4,
            },
            "Llama-2-13B": {
                "model.path": "meta-llama/Llama-2-13b-hf",
                "model.dtype": "bfloat16",
                "model.remat": True,
                "train.learning_rate": 5e-5,
            },
            "Mixtral-8x7B": {
                "model.path": "mistralai/Mixtral-8x7B-v0.1",
                "model.dtype": "bfloat16",
                "model.quantize": "int8",
                "model.remat": True,
                "train.learning_rate": 5e-5,
            },
        },
        reference=DIRECT,
        none=ZERO_SHOT,
        prompted=ICL,
        contrasts=CONTRASTS,
        paper=(PAPER,),
        notes=(
            "Arms are trained for equal optimizer steps over equal examples. Learning rate, batch "
            "and warm-up aren't public for PromptIntern's open models; see the file for what "
            "stands in for them.",
        ),
        usd_per_hour=4.0,
    )
