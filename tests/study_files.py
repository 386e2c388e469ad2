"""A study of two arms and two seeds on the tiny model, as a file that other processes read too."""

import json
from pathlib import Path

from pintern.config import to_json
from tests import tiny

SOURCE = """\
import json
from pathlib import Path

from pintern.arms import Arm
from pintern.config import from_json
from pintern.evaluation.run import InferencePrompt
from pintern.studies.diagnostics import Forgetting, KLToPrompted, ServingLatency, Transfer
from pintern.studies.staleness import Edit, Staleness
from pintern.studies.study import Lines, PaperTable, Row, Study

HERE = Path(__file__).parent
QUERY_ONLY = InferencePrompt(0.0, 0)


def config(seed):
    made = from_json((HERE / "config.json").read_text())
    made.seed = seed
    return made


def prompted(seed):
    return Arm("prompted", config(seed), InferencePrompt(1.0, 1), trained=False)


def bare(seed):
    return Arm("query only", config(seed), QUERY_ONLY, trained=False)


def direct(seed):
    made = config(seed)
    made.curriculum.update(schedule="explicit", stages=4, keep_rates=(0.0,), shots=(0,))
    return Arm("direct", made, QUERY_ONLY)


def ours(seed):
    made = config(seed)
    made.checkpoint.stages = True
    return Arm("ours", made, QUERY_ONLY)


def prompt_tuning(seed, rate=1e-2):
    made = direct(seed).config
    made.adapter.targets, made.adapter.soft_prompt = (), 2
    made.train.learning_rate = rate
    return Arm(f"prompt tuning at {rate:g}", made, QUERY_ONLY)


def get_study(argument=""):
    settings = json.loads((HERE / "settings.json").read_text())
    rows = [
        Row(bare, once=True),
        Row(prompted, once=True),
        Row(direct, factors={"stages": 1}),
        Row(ours, factors={"stages": 2}),
        Row(prompt_tuning),
        Row(lambda seed: prompt_tuning(seed, 3e-2)),
    ]
    kinds = {"kl": KLToPrompted(shots=1, examples=8), "latency": ServingLatency(requests=2)}
    edit = Edit("bolts lie on shelf four", "bolts lie on shelf two", "shelf 2", "shelf 5", ("pin",))
    kinds["forgetting"] = Forgetting((("seed", 1),), shots=1, examples=8)
    kinds["transfer"] = Transfer()
    kinds["staleness"] = Staleness((edit,), steps=4, every=2, queries=8, shots=1)
    return Study(
        name="tiny" + argument,
        question="Do shelves get learned <by> heart?",
        rows=tuple(row for row in rows if row.make(0).name in settings["arms"]),
        tasks={name: dict(changes) for name, changes in settings["tasks"].items()},
        seeds=tuple(settings["seeds"]),
        reference=settings["reference"],
        none="query only" if "query only" in settings["arms"] else "",
        prompted="prompted" if "prompted" in settings["arms"] else "",
        measures=tuple(kinds[name] for name in settings["measures"]),
        paper=(PaperTable("a paper | table 1", ("MBPP",), {"ours": (78.1,), "theirs": (None,)}),),
        lines=(Lines(x="stages"),) if {"direct", "ours"} & set(settings["arms"]) else (),
        notes=("Eight steps teach nothing.",),
    )
"""


def study_file(directory: Path, *, changes: dict | None = None, **settings: object) -> Path:
    """Writes the file; `changes` go to every arm's config, `settings` to the study."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(to_json(tiny.config(**(changes or {}))))
    given = {
        "arms": ["query only", "prompted", "direct", "ours"],
        "tasks": {"store": {}},
        "seeds": [0, 1],
        "reference": "direct",
        "measures": [],
    } | settings
    (directory / "settings.json").write_text(json.dumps(given))
    path = directory / "study.py"
    path.write_text(SOURCE)
    return path
