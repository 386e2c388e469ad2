"""Trains an adapter that does without the prompt.

    python -m pintern.train --config=experiments/promptintern/company.py --workdir=runs/first

Run the same command again to resume: after kill −9 the run goes on from its last checkpoint and
ends with the same adapter, bit for bit. SIGTERM (or Ctrl-C) saves and exits with 0, also where it
comes before there is anything to save. The folder then holds config.json, prompts/ (the template at
every level, as text to read and edit), checkpoints/, metrics.jsonl and tensorboard/. Next:

    python -m pintern.evaluate --workdir=runs/first

A run is resumed with the config and base that it was begun with; another is refused by name.
`--allow_changed=config` (or `base`) goes on all the same, where the folder permits. How often it
writes (`checkpoint.every`, `minutes` and `keep`, `train.log_every`) may always change.

Started by `launch` as several processes, it connects with the others first.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from absl import flags

from pintern import cli, distributed
from pintern.training.signals import sigterm

if TYPE_CHECKING:
    from ml_collections import ConfigDict

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; made if absent.", required=True)
ALLOW_CHANGED = flags.DEFINE_multi_enum(
    "allow_changed",
    [],
    ["config", "base"],
    "Resume though config or base differ from the run's; noted in changes.jsonl.",
)


def main(_: list[str]) -> None:
    """Trains the config's run."""
    name = WORKDIR.value
    with sigterm() as stop:  # before the imports, which take seconds
        config = cli.config_from_flags()
        complete = not stop and _train(config, name)
    if complete:
        print(f"Trained. Next: python -m pintern.evaluate --workdir={name}")
    else:
        print(
            f"Stopped by a signal; what was trained is saved in {name}. The same command goes on."
        )
        sys.exit(distributed.stopped_status())


def _train(config: ConfigDict, name: str) -> bool:
    """Trains in the folder, beside other processes if there are any; False if a signal came."""
    distributed.initialize()
    from pintern.remote import local_workdir
    from pintern.training.loop import train

    with local_workdir(name, trains=True) as workdir:
        return train(config, workdir, allow_changed=ALLOW_CHANGED.value)


if __name__ == "__main__":
    cli.define_config()
    cli.run(main)
