"""Writes the company task.

    python -m experiments.company.generate --out=pintern/assets/company

The committed files come from the default seed.
"""

from pathlib import Path

from absl import flags

from experiments.company.task import make_task, write_task
from pintern import cli

OUT = flags.DEFINE_string("out", "pintern/assets/company", "Directory to write.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of rows and questions.")


def main(_: list[str]) -> None:
    """Makes the task and writes its files."""
    write_task(make_task(SEED.value), Path(OUT.value))


if __name__ == "__main__":
    cli.run(main)
