"""Shows which labelled pairs a config's retriever finds.

    python -m pintern.retrieve --config=experiments/promptintern/company.py --show=3
    python -m pintern.retrieve --config=experiments/promptintern/company.py \\
        --config.prompt.retriever=similarity_band --config.prompt.similarity_quantile=0.5

Queries are the first of the test set, or of the labelled pairs with --train, which are never given
themselves. Each is shown with as many pairs as the config's fullest prompt has, in training or at
inference. Nothing is trained; vectors of the pool are made if need be, and kept.
"""

from absl import flags

from pintern import cli
from pintern.errors import UserError

SHOW = flags.DEFINE_integer("show", 5, "Queries to show.", lower_bound=1)
TRAIN = flags.DEFINE_bool("train", False, "Take queries from the labelled pairs.")


def main(_: list[str]) -> None:
    """Prints queries, and what is found for each."""
    config = cli.config_from_flags()
    from pintern.assemble import assemble

    prompts = assemble(config).prompts
    shots = max(config.eval.shots, *(level.shots for level in prompts.curriculum.levels))
    if not shots:
        raise UserError(
            "The config shows no labelled pairs, neither in training nor at inference.",
            "Set config.prompt.max_shots (an explicit schedule: config.curriculum.shots), or "
            "config.eval.shots.",
        )
    task = prompts.task
    examples = (task.train if TRAIN.value else task.test)[: SHOW.value]
    found = prompts.retriever.neighbours(
        [example.query for example in examples],
        shots,
        exclude=range(len(examples)) if TRAIN.value else None,
    )
    for example, indices in zip(examples, found, strict=True):
        print(f"\n{example.query}")
        for index in indices:
            print(f"  {index:>6}  {task.train[index].query}  →  {task.train[index].completion}")


if __name__ == "__main__":
    cli.define_config()
    cli.run(main)
