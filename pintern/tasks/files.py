"""A user's own task: a template, and pairs from JSONL files or any source of rows."""

from ml_collections import ConfigDict

from pintern.errors import UserError
from pintern.prompts.task import (
    Example,
    PromptFormat,
    Task,
    read_examples,
    read_queries,
    read_template,
    split_examples,
    task_from_files,
)
from pintern.tasks.sources import Row, take
from pintern.tasks.splits import HELD_OUT, load_splits


def files_task(config: ConfigDict, seed: int) -> Task:
    """Reads what `config.task` names; without a test set, a fifth of the pairs is held out.

    Pairs come from `train` and `test`, JSONL of `{"query", "completion"}`, or from `data`, any
    source that `sources.open_source` reads, whose `query_field` and `completion_field` say what is
    what.
    """
    _check(config)
    form = PromptFormat(
        query=config.query_format,
        completion=config.completion_format,
        example_end=config.example_end,
    )
    common = {"format": form, "metric": config.metric, "database": config.database or None}
    if config.test:
        return task_from_files(
            "files",
            config.template,
            config.train,
            config.test,
            unlabelled=config.unlabelled or None,
            **common,
        )
    if config.data:

        def pairs(row: Row, where: str) -> list[Example]:
            query = take(row, config.query_field, str, where)
            return [Example(query, take(row, config.completion_field, str, where))]

        train, test, note = load_splits(
            "files", config.data, seed, test="test", learn=pairs, judge=pairs, sizes={}
        )
    else:
        examples = read_examples(config.train)
        train, test = split_examples(examples, HELD_OUT, seed, config.train)
        note = (
            f"No test file: {len(test)} of the {len(examples)} pairs in {config.train} are held "
            f"out, a fifth of the distinct queries (seed {seed})."
        )
    return Task(
        name="files",
        template=read_template(config.template),
        train=train,
        test=test,
        unlabelled=read_queries(config.unlabelled) if config.unlabelled else (),
        note=note,
        **common,
    )


def _check(config: ConfigDict) -> None:
    if config.data and (config.train or config.test):
        raise UserError(
            f"config.task.data={config.data} and config.task.train or test both name the pairs.",
            "Give one of them.",
        )
    for field in ("template",) if config.data else ("template", "train"):
        if not config[field]:
            raise UserError(
                f"config.task.{field} is empty; a task of kind 'files' needs it.",
                f"Pass --config.task.{field}=PATH.",
            )
    if config.metric == "sql" and not config.database:
        raise UserError("config.task.metric is 'sql', which needs config.task.database=FILE.")
