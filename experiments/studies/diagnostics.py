"""What internalising leaves behind: distance to the prompted model, forgetting, staleness.

    python -m pintern.study --study=experiments/studies/diagnostics.py --workdir=runs/diagnostics

KL to the prompted base at the end of every stage, the internalisation score, another company's
questions (behind that company's prompt) before and after, and what happens when two terms are
redefined in the prompt after it was internalised. Reduced: the company task on the bundled model.
"""

from experiments.companies.task import company_fields
from experiments.studies.rows import DIRECT, ICL, OURS, PROMPTINTERN, ZERO_SHOT, row
from pintern.studies.diagnostics import Forgetting, KLToPrompted, ServingLatency
from pintern.studies.staleness import Edit, Staleness
from pintern.studies.study import Study

STAGES = {"checkpoint.stages": True}
OTHER_COMPANY = 0
# The base follows both behind its prompt. An edit that it can't read there (another sign between
# the same columns, say) can't be internalised.
EDITS = (
    Edit(
        "Metric profit is mus - fup.",
        "Metric profit is mus - nem.",
        "mus - fup",
        "mus - nem",
        ("profit",),
    ),
    Edit("capacity is duv", "capacity is nem", "duv", "nem", ("capacity",)),
)


def get_study() -> Study:
    """The grid."""
    stale = Staleness(EDITS, steps=60, every=10)
    return Study(
        name="diagnostics",
        question=(
            "How far is the model that was weaned off its prompt from the one that reads it, "
            "stage by stage; what has it forgotten; and what if the prompt is edited afterwards?"
        ),
        rows=(
            row(ZERO_SHOT, measures=(ServingLatency(),)),
            row(ICL, measures=(ServingLatency(),)),
            row(DIRECT, measures=(stale,)),
            row("abrupt drop", STAGES),
            row(PROMPTINTERN, STAGES),
            row("context distillation", measures=(stale,)),
            row(OURS, STAGES, measures=(stale,)),
            row("hybrid", STAGES),
        ),
        reference=DIRECT,
        none=ZERO_SHOT,
        prompted=ICL,
        measures=(
            KLToPrompted(),
            Forgetting(tuple({**company_fields(OTHER_COMPANY), "distill.unlabelled": 0}.items())),
            ServingLatency(),
        ),
        notes=(
            "Reduced: a model of two million parameters. Forgetting is the other company's score "
            "behind its own full prompt, after less before. After the edit the labelled pairs that "
            "it made wrong are left out, so that the new definitions can come from the prompt "
            "alone.",
        ),
    )
