"""Where tasks come from: the embedded company task, a user's own files, public data sets.

`load_task` is all that the rest uses; each loader is one file that returns a `prompts.task.Task`.
"""

from ml_collections import ConfigDict

from pintern.prompts.task import Task


def load_task(config: ConfigDict) -> Task:
    """The task that a checked config names, cut to `max_train` and `max_test`."""
    import dataclasses

    task = _load(config)
    changes: dict[str, object] = {"chat": config.task.chat}
    if config.task.max_train:
        changes["train"] = task.train[: config.task.max_train]
    if config.task.max_test:
        changes["test"] = task.test[: config.task.max_test]
    return dataclasses.replace(task, **changes)


def _load(config: ConfigDict) -> Task:
    if config.task.kind == "company":
        from pintern.tasks.company import company_task

        return company_task()
    if config.task.kind == "nl2bash":
        from pintern.tasks.nl2bash import nl2bash_task

        return nl2bash_task(config.task.data, config.seed)
    from pintern.tasks.files import files_task

    return files_task(config.task, config.seed)
