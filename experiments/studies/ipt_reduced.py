"""ICL, prompt tuning (PT) and instruction prompt tuning (IPT) in a size that two cores run.

    FILE=experiments/studies/ipt_reduced.py
    python -m pintern.study --study=$FILE --workdir=runs/ipt-reduced

Three findings of 2302.11521 on five small companies and the bundled model: PT and IPT against ICL
with demonstrations of a controlled similarity; spread over seeds at two prompt lengths; soft
prompts of one company on the others, with and without a demonstration of theirs.

In the paper a part of the knowledge stands in the input (Spider's schema, ToTTo's table) and no
arm goes without. So it is here: all arms read `partial.txt`, half of the schema, at training and at
inference. Without any schema the bundled model can't use a demonstration, and with the whole one
there is nothing left to learn.
"""

from experiments.companies.task import NAMES, company_fields
from experiments.studies.ipt import FINDINGS, QUANTILES, contrasts
from experiments.studies.rows import ICL, row
from pintern.studies.diagnostics import Transfer
from pintern.studies.study import Lines, Row, Study

# The paper has about 25 and 100 vectors at widths of 1536 and more; the bundled model's is 192.
SHORT, LONG = 8, 25
ONE_SHOT = "ICL, 1 example"

TRAINING = {
    "curriculum.keep_rates": (1.0,),
    "eval.keep_rate": 1.0,
    "eval.max_new_tokens": 40,
    "prompt.max_shots": 1,
    "prompt.retriever": "dense",
    "train.steps": 200,
    "train.batch_rows": 8,
    "train.learning_rate": 0.03,
    "train.warmup": 0.1,
    "checkpoint.every": 100,
}


def get_study() -> Study:
    """The grid."""
    return Study(
        name="ipt-reduced",
        question=(
            "Does a learned soft prompt beat a retrieved demonstration, do both together beat "
            "either, how much depends on the seed and on how similar the demonstration is, and "
            "is a soft prompt of use on another task?"
        ),
        rows=(
            row("zero-shot", TRAINING, name="no example"),
            _icl(ONE_SHOT, similarity=1.0),
            *(_icl(f"{ONE_SHOT}, similarity {q:g}", similarity=q) for q in QUANTILES),
            _tuned("prompt tuning", "PT", SHORT),
            _tuned("IPT", "IPT", SHORT, similarity=1.0),
            *(_tuned("IPT", "IPT", SHORT, similarity=q) for q in QUANTILES),
            _tuned("prompt tuning", "PT", LONG),
            _tuned("IPT", "IPT", LONG),
        ),
        tasks={name: company_fields(i, partial=True) for i, name in enumerate(NAMES)},
        reference=f"PT, P={SHORT}",
        contrasts=contrasts(SHORT, LONG),
        paper=(FINDINGS,),
        lines=(
            Lines("similarity", "method", "Score over the similarity of the demonstration"),
            Lines("P", "tuned", "Score over the length of the soft prompt"),
        ),
        notes=(
            "Reduced: a model of two million parameters, five made-up companies, 200 steps of 8 "
            "rows. All arms read half of the schema as a part of the input, since the model can't "
            "use a demonstration without. Similarity q is a quantile of the cosines of the base's "
            "mean-pooled states: 1 is the nearest labelled pair, 0 the farthest.",
        ),
    )


def _band(quantile: float) -> dict[str, object]:
    if quantile == 1.0:  # the band's head is the dense retriever itself
        return {}
    return {"prompt.retriever": "similarity_band", "prompt.similarity_quantile": quantile}


def _icl(name: str, *, similarity: float) -> Row:
    changes = {**TRAINING, "eval.shots": 1, **_band(similarity)}
    return row(ICL, changes, name=name, factors={"similarity": similarity, "method": "ICL"})


def _tuned(arm: str, short: str, length: int, *, similarity: float | None = None) -> Row:
    """A soft prompt, with or without a demonstration in training and at inference.

    Args:
      arm: its name among the thirteen.
      short: how it is called here.
      length: virtual tokens.
      similarity: quantile of the demonstration, in training too; None is the nearest, and no point
        of the plot over similarity.
    """
    name, factors = f"{short}, P={length}", {}
    if similarity is not None:
        factors = {"similarity": similarity, "method": name}
    if similarity in (None, 1.0):
        factors |= {"P": length, "tuned": short}
    else:
        name += f", similarity {similarity:g}"
    changes = {**TRAINING, "adapter.soft_prompt": length}
    measures = ()
    if length == LONG:
        measures = (Transfer(),)
        if short == "PT":
            measures += (Transfer(shots=1, name="transfer_with_example"),)
    if similarity is not None:
        changes |= _band(similarity)
    return row(arm, changes, name=name, factors=factors, measures=measures)
