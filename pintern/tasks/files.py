"""A user's own task: a template and JSONL files of `{"query", "completion"}`."""

from ml_collections import ConfigDict

from pintern.errors import UserError
from pintern.prompts.task import (
    PromptFormat,
    Task,
    read_examples,
    read_template,
    split_examples,
    task_from_files,
)

TEST_SHARE = 0.2


def files_task(config: ConfigDict, seed: int) -> Task:
    """Reads the files that `config.task` names; without `test`, a fifth of `train` is held out."""
    for field in ("template", "train"):
        if not config[field]:
            raise UserError(
                f"config.task.{field} is empty; a task of kind 'files' needs it.",
                f"Pass --config.task.{field}=PATH.",
            )
    if config.metric == "sql" and not config.database:
        raise UserError("config.task.metric is 'sql', which needs config.task.database=FILE.")
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
    examples = read_examples(config.train)
    train, test = split_examples(examples, TEST_SHARE, seed)
    unlabelled = ()
    if config.unlabelled:
        from pintern.prompts.task import read_queries

        unlabelled = read_queries(config.unlabelled)
    return Task(
        name="files",
        template=read_template(config.template),
        train=train,
        test=test,
        unlabelled=unlabelled,
        note=(
            f"No test file: {len(test)} of the {len(examples)} pairs in {config.train} are held "
            f"out, a fifth of the distinct queries (seed {seed})."
        ),
        **common,
    )
