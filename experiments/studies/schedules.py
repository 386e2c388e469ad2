"""How should the prompt be taken away? Schedules × stages, and what each part of it is worth.

    python -m pintern.study --study=experiments/studies/schedules.py --workdir=runs/schedules

Linear, exponential, inverse exponential, cosine and adaptive falls over 2 to 8 stages; with and
without compression of the template, with and without absorption of the examples; the keep rate of
a single stage between all and nothing. The company task on the bundled model;
`schedules_reduced.py` has half of the rows.
"""

from collections.abc import Sequence

from experiments.studies.rows import DIRECT, ICL, OURS, ZERO_SHOT, row
from pintern.studies.study import Lines, PaperTable, Row, Study

STAGES = (3, 4, 6, 8)
SHAPES = ("linear", "exponential", "inverse_exponential", "cosine")
KEEP_RATES = (0.2, 0.4, 0.6, 0.8)
# Every row has half of its steps on the query alone: what differs is the way down to it.
SHORT = {
    "train.steps": 150,
    "curriculum.final_share": 0.5,
    "distill.unlabelled": 600,
}
LINEAR = "linear, 4 stages"
# Of SKIntern (2409.13183), Llama-2-7B on BBH.
SKINTERN = PaperTable(
    source="SKIntern (2409.13183), ablation of its schedule, Llama-2-7B on BBH",
    columns=("accuracy",),
    rows={
        "linear, 4 stages": (69.3,),
        "exponential": (64.8,),
        "inverse exponential": (59.5,),
        "linear, 3 stages": (60.2,),
        "linear, 7 stages": (65.7,),
        "without examples": (61.9,),
    },
    note="Another task, another model, and the closest method with a published ablation.",
)


# Shape of the fall and number of stages.
Fall = tuple[str, int]
FALLS: tuple[Fall, ...] = (
    *((shape, stages) for shape in SHAPES for stages in STAGES),
    ("adaptive", 4),
    ("adaptive", 8),
)


def get_study() -> Study:
    """The whole grid."""
    return make_study("schedules", FALLS, KEEP_RATES)


def make_study(name: str, falls: Sequence[Fall], keep_rates: Sequence[float]) -> Study:
    """A grid.

    Args:
      name: of the study.
      falls: beside the one of two stages, which is the same for all shapes.
      keep_rates: of a single stage between all and nothing.
    """
    return Study(
        name=name,
        question=(
            "How should the prompt be taken away: how fast, in how many stages, and do the "
            "compressed template and the retrieved examples both matter on the way?"
        ),
        rows=(
            row(ZERO_SHOT),
            row(ICL),
            row(DIRECT, {"train.steps": SHORT["train.steps"]}),
            _progressive("any shape, 2 stages", {"curriculum.stages": 2}, schedule="any", stages=2),
            *(_falling(*fall) for fall in falls),
            *_parts(),
            *(_by_way_of(rate) for rate in keep_rates),
        ),
        reference=LINEAR,
        none=ZERO_SHOT,
        prompted=ICL,
        paper=(SKINTERN,),
        lines=(
            Lines("stages", "schedule", "Score over the number of stages"),
            Lines("keep rate", "", "Score over the keep rate of the stage in the middle"),
        ),
        notes=(
            "Reduced: a model of two million parameters, 150 steps of 16 rows, half of them on the "
            "query alone, with distillation from the student as its first stage leaves it. With "
            "two stages all shapes are the same fall, so they are one row.",
        ),
    )


def _progressive(name: str, changes: dict[str, object], **factors: str | float) -> Row:
    return row(OURS, {**SHORT, **changes}, name=name, factors=factors)


def _explicit(name: str, levels: list[tuple[float, int]], **factors: str | float) -> Row:
    rates, shots = zip(*levels, strict=True)
    changes = {
        "curriculum.schedule": "explicit",
        "curriculum.keep_rates": rates,
        "curriculum.shots": shots,
    }
    return _progressive(name, changes, **factors)


def _falling(shape: str, stages: int) -> Row:
    changes: dict[str, object] = {"curriculum.schedule": shape, "curriculum.stages": stages}
    if shape == "adaptive":
        changes["curriculum.patience"] = 15
    name = f"{shape.replace('_', ' ')}, {stages} stages"
    return _progressive(name, changes, schedule=shape, stages=stages)


def _parts() -> list[Row]:
    """The linear fall of four stages with either part left as it is until the last one."""
    return [
        _explicit("template never compressed", [(1.0, 2), (1.0, 1), (1.0, 0), (0.0, 0)]),
        _explicit("no examples to absorb", [(1.0, 0), (0.67, 0), (0.33, 0), (0.0, 0)]),
        _explicit("neither", [(1.0, 0), (0.0, 0)]),
    ]


def _by_way_of(rate: float) -> Row:
    """Three stages: all, the template at τ, nothing."""
    name = f"τ = {rate:g} in the middle"
    return _explicit(name, [(1.0, 2), (rate, 1), (0.0, 0)], **{"keep rate": rate})
