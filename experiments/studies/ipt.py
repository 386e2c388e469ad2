"""ICL, prompt tuning (PT) and instruction prompt tuning (IPT) at full size: 2302.11521.

    FILE=experiments/studies/ipt.py
    python -m pintern.study --study=$FILE:DATA --workdir=runs/ipt

DATA is a folder that holds `totto/`, `dart/`, `logic2text/`, `spider/` and `mtop/`. It needs an
accelerator for days; `--list` shows the cells, `--only` takes some. `ipt_reduced.py` asks the same
questions in a size that two cores run.
"""

from experiments.ipt.base import ipt_config
from pintern.arms import Arm, arm_of
from pintern.studies.diagnostics import Transfer
from pintern.studies.study import Lines, Measure, PaperTable, Row, Study, lay_over

SHORT, LONG = 25, 100
# Of the similarities of a query to the labelled pairs; 1 is the nearest, which is plain IPT.
QUANTILES = (0.5, 0.0)
# The longest answers of each set are cut at this.
NEW_TOKENS = {"totto": 64, "dart": 96, "logic2text": 64, "spider": 128, "mtop": 128}
TITLES = {
    "totto": "ToTTo",
    "dart": "DART",
    "logic2text": "Logic2Text",
    "spider": "Spider",
    "mtop": "MTOP",
}

FINDINGS = PaperTable(
    source="Prompt tuning, in-context learning and both (2302.11521)",
    columns=("finding",),
    rows={
        "1": ("PT and IPT beat ICL; IPT beats PT only where the demonstration is similar",),
        "2": ("PT varies a lot over seeds, IPT less, on all five tasks",),
        "3": ("soft prompts transfer when paired with demonstrations of the target task",),
    },
    note="What the paper finds, in words: its figures were not read in a public source.",
)


def get_study(data: str = "../shared/data") -> Study:
    """The full grid.

    Args:
      data: folder of the data sets.
    """
    return Study(
        name="ipt",
        question=(
            "Does a learned soft prompt beat a retrieved demonstration, do both together beat "
            "either, how much depends on the seed and on how similar the demonstration is, and "
            "is a soft prompt of use on another task?"
        ),
        rows=(
            _row("ICL", 0),
            _row(
                "PT", SHORT, measures=(Transfer(), Transfer(shots=1, name="transfer_with_example"))
            ),
            _row("IPT", SHORT, similarity=1.0, measures=(Transfer(),)),
            *(_row("IPT", SHORT, similarity=quantile) for quantile in QUANTILES),
            _row("PT", LONG),
            _row("IPT", LONG),
        ),
        tasks={
            TITLES[kind]: {
                "task.kind": kind,
                "task.data": f"{data}/{kind}",
                "eval.max_new_tokens": tokens,
            }
            for kind, tokens in NEW_TOKENS.items()
        },
        models={
            "BLOOM-1.1B": {"model.path": "bigscience/bloom-1b1"},
            "OPT-1.3B": {"model.path": "facebook/opt-1.3b"},
            "GPT-2-XL": {"model.path": "openai-community/gpt2-xl"},
        },
        reference=f"PT, P={SHORT}",
        contrasts=contrasts(SHORT, LONG),
        paper=(FINDINGS,),
        lines=(
            Lines("similarity", "method", "Score over the similarity of the demonstration"),
            Lines("P", "tuned", "Score over the length of the soft prompt"),
        ),
        notes=(
            "Seeds, learning rate and steps aren't public: three seeds, 3,000 steps of 16 rows at "
            "1e-2 stand in. `experiments/ipt/variance.py` sweeps rate × initialisation × seed.",
        ),
        usd_per_hour=4.0,
    )


def contrasts(short: int, long: int) -> tuple[tuple[str, str], ...]:
    """The first finding as pairs of arms, at two lengths and three similarities."""
    icl = "ICL, 1 example"
    lengths = [
        pair
        for length in (short, long)
        for pair in (
            (f"PT, P={length}", icl),
            (f"IPT, P={length}", icl),
            (f"IPT, P={length}", f"PT, P={length}"),
        )
    ]
    far = [(f"IPT, P={short}, similarity {q:g}", f"PT, P={short}") for q in QUANTILES]
    return (*lengths, *far)


def _row(
    method: str,
    length: int,
    *,
    similarity: float | None = None,
    measures: tuple[Measure, ...] = (),
) -> Row:
    """One arm.

    Args:
      method: ICL, PT or IPT; PT has no demonstration, neither in training nor at inference.
      length: virtual tokens.
      similarity: quantile of the demonstration, in training too; None is the nearest, and no point
        of the plot over similarity.
      measures: of this row.
    """
    name = f"{method}, P={length}" if length else f"{method}, 1 example"
    changes: dict[str, object] = {"adapter.soft_prompt": length}
    if method == "PT":
        changes |= {"curriculum.shots": (0,), "eval.shots": 0}
    factors: dict[str, str | float] = {}
    if similarity is not None:
        factors = {"similarity": similarity, "method": name}
    if length and similarity in (None, 1.0):
        factors |= {"P": length, "tuned": method}
    if similarity is not None and similarity < 1.0:  # the band's head is the dense retriever
        name += f", similarity {similarity:g}"
        changes |= {
            "prompt.retriever": "similarity_band",
            "prompt.similarity_quantile": similarity,
        }

    def make(seed: int) -> Arm:
        config = ipt_config("totto")  # the study's tasks take its place
        lay_over(config, changes)
        return arm_of(config, seed=seed, name=name)

    return Row(make, factors, measures=measures)
