"""Where tasks come from: the embedded company task, a user's own files, public data sets.

`load_task` is all that the rest uses; each loader is one file that returns a `prompts.task.Task`.
`sources` reads rows from wherever they lie, `splits` says which are learned from and judged by.
"""

import dataclasses
from collections.abc import Callable

from ml_collections import ConfigDict

from pintern.prompts.task import Task
from pintern.tasks.company import company_task
from pintern.tasks.dart import dart_task
from pintern.tasks.files import files_task
from pintern.tasks.logic2text import logic2text_task
from pintern.tasks.mbpp import mbpp_task
from pintern.tasks.mtop import mtop_task
from pintern.tasks.nl2bash import nl2bash_task
from pintern.tasks.nl2formula import nl2formula_task
from pintern.tasks.spider import spider_task
from pintern.tasks.totto import totto_task
from pintern.tasks.wikisql import wikisql_task

# `config.task.kind` to its loader; `pintern.config` lists the kinds as well.
LOADERS: dict[str, Callable[[ConfigDict], Task]] = {
    "company": lambda config: company_task(),
    "dart": lambda config: dart_task(config.task.data, config.seed),
    "files": lambda config: files_task(config.task, config.seed),
    "logic2text": lambda config: logic2text_task(config.task.data, config.seed),
    "mtop": lambda config: mtop_task(config.task.data, config.seed),
    "mbpp": lambda config: mbpp_task(config.task.data),
    "nl2bash": lambda config: nl2bash_task(config.task.data, config.seed),
    "nl2formula": lambda config: nl2formula_task(config.task.data, config.seed),
    "spider": lambda config: spider_task(config.task.data),
    "totto": lambda config: totto_task(config.task.data, config.seed),
    "wikisql": lambda config: wikisql_task(config.task.data),
}


def load_task(config: ConfigDict) -> Task:
    """The task that a checked config names, cut to `max_train` and `max_test`; its note says so.

    The note also counts the test queries whose answers by the teacher may be trained on.
    """
    task = LOADERS[config.task.kind](config)
    changes: dict[str, object] = {"chat": config.task.chat}
    cuts = []
    for side, what in (("train", "labelled pairs"), ("test", "test examples")):
        most, examples = config.task[f"max_{side}"], getattr(task, side)
        if 0 < most < len(examples):
            changes[side] = examples[:most]
            cuts.append(f"the first {most:,} of {len(examples):,} {what}")
    if cuts:
        changes["note"] = f"{task.note} Cut to {' and '.join(cuts)}.".strip()
    task = dataclasses.replace(task, **changes)
    if config.distill.unlabelled:
        log = frozenset(task.unlabelled)
        if shared := sum(example.query in log for example in task.test):
            told = f"Test queries that the log to distil on has as well: {shared:,}."
            task = dataclasses.replace(task, note=f"{task.note} {told}".strip())
    return task
