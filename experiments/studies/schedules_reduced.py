"""The schedule ablation in a size that two cores run in an hour or two.

    FILE=experiments/studies/schedules_reduced.py
    python -m pintern.study --study=$FILE --workdir=runs/schedules-reduced

Every shape at four stages, the linear one also at two and eight, and all of what `schedules.py`
asks about compression, absorption and keep rates.
"""

from experiments.studies.schedules import SHAPES, make_study
from pintern.studies.study import Study

FALLS = (*((shape, 4) for shape in SHAPES), ("linear", 8), ("adaptive", 4))


def get_study() -> Study:
    """The grid."""
    return make_study("schedules-reduced", FALLS, keep_rates=(0.25, 0.5, 0.75))
