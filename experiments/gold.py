r"""Scores a task's gold answers by its own metrics, and prints a table: all should be right.

    python -m experiments.gold --task=mbpp --data=FILE
    python -m experiments.gold --task=spider --data=FOLDER
    python -m experiments.gold --task=wikisql --data=FOLDER

It tests the metric and the data, not a model. Of MBPP all tasks are scored, of other sets what a
model is judged by.
"""

import sys
import time

from absl import flags

from pintern import cli

TASK = flags.DEFINE_string("task", None, "Kind of task, as config.task.kind.", required=True)
DATA = flags.DEFINE_string("data", "", "Its file or folder, as config.task.data.")
LIMIT = flags.DEFINE_integer("limit", 0, "Score so many examples; 0 is all.", lower_bound=0)


def main(_: list[str]) -> None:
    """Prints one row per metric, then what was wrong and why."""
    import dataclasses

    from pintern.config import default_config, validate
    from pintern.evaluation.metrics import score_predictions
    from pintern.tasks import load_task
    from pintern.tasks.mbpp import mbpp_examples

    config = default_config()
    config.task.kind, config.task.data = TASK.value, DATA.value
    task = load_task(validate(config))
    if TASK.value == "mbpp":
        task = dataclasses.replace(task, test=mbpp_examples(DATA.value))
    examples = task.test[: LIMIT.value or None]
    golds = [example.completion for example in examples]
    print("| task | metric | gold answers | right | score | seconds |")
    print("| :--- | :--- | ---: | ---: | ---: | ---: |")
    found = {}
    for metric in (task.metric, *task.further_metrics):
        started = time.monotonic()
        options = {"database": task.database, **task.metric_options}
        found[metric] = scores = score_predictions(metric, golds, examples, **options)
        right = sum(score == 100 for score in scores.per_example)
        seconds = time.monotonic() - started
        print(
            f"| {task.name} | {metric} | {len(golds)} | {right} | {scores.value:.2f} "
            f"| {seconds:.0f} |",
            flush=True,
        )
    print(f"\n{task.note}")
    for metric, scores in found.items():
        wrong = [e.id for e, s in zip(examples, scores.per_example, strict=True) if s < 100]
        print(f"{metric}: {scores.signature}, {scores.reasons}")
        if wrong:
            print(f"  not right: {', '.join(wrong[:20])}{' …' if len(wrong) > 20 else ''}")
    print(f"Python {sys.version.split()[0]}")


if __name__ == "__main__":
    cli.run(main)
