"""PromptIntern's main table in a size that two cores run: thirteen arms, the bundled model.

    FILE=experiments/studies/promptintern_main_reduced.py
    python -m pintern.study --study=$FILE --workdir=runs/main-reduced

`FILE:FOLDER` adds WikiSQL-lite, a few tables of WikiSQL from FOLDER; the bundled model of two
million parameters can't read English at large, so that column shows the path and claims nothing.
"""

from experiments.studies.promptintern_main import CONTRASTS, PAPER
from experiments.studies.rows import ARMS, DIRECT, ICL, ZERO_SHOT, row
from pintern.studies.diagnostics import ServingLatency
from pintern.studies.study import Study


def get_study(wikisql: str = "") -> Study:
    """The company task, and WikiSQL-lite where its folder is given."""
    tasks: dict[str, dict[str, object]] = {"company": {}}
    if wikisql:
        tasks["WikiSQL-lite"] = {
            "task.kind": "wikisql",
            "task.data": wikisql,
            "task.max_train": 400,
            "task.max_test": 100,
            "distill.unlabelled": 0,
        }
    return Study(
        name="promptintern-main-reduced",
        question=(
            "PromptIntern's main table in small: does a model that was weaned off its prompt "
            "answer as well as one that reads it, for how many tokens and what money?"
        ),
        rows=tuple(row(arm, measures=(ServingLatency(),)) for arm in ARMS),
        tasks=tasks,
        reference=DIRECT,
        none=ZERO_SHOT,
        prompted=ICL,
        contrasts=CONTRASTS,
        paper=(PAPER,),
        notes=(
            "Reduced: a model of two million parameters, 300 steps of 16 rows, one made-up task. "
            "The published figures stand beside for their order, not for their size.",
        ),
    )
