"""A population: every member as if it had trained alone, whatever becomes of the others."""

import jax
import numpy as np
import tiny

from pintern.adapters.adapter import Adapter
from pintern.training.population import train_population
from pintern.training.restore import restore_run
from pintern.training.workdir import read_config

MEMBERS = (
    {"seed": 0, "train__learning_rate": 2e-3},
    {"seed": 1, "train__learning_rate": 2e-3, "adapter__soft_prompt_init": "uniform"},
    {"seed": 1, "train__learning_rate": 5e-3, "train__weight_decay": 0.1, "train__clip": 0.3},
)


def configs_of(members=MEMBERS, **changes):
    return [tiny.config(**changes, **member) for member in members]


def folders(root, count=len(MEMBERS)):
    return [root / f"member-{i}" for i in range(count)]


def run(root, members=MEMBERS, **changes):
    return train_population(configs_of(members, **changes), folders(root, len(members)))


def adapter_of(workdir) -> Adapter:
    return restore_run(workdir, read_config(workdir))[1]


def bits(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def assert_close(found, expected, rel=1e-5):
    """Each array within `rel` of its largest entry."""
    one, two = (jax.tree_util.tree_leaves_with_path(tree) for tree in (found, expected))
    for (path, a), (_, b) in zip(one, two, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.abs(a - b).max() <= rel * np.abs(b).max(), jax.tree_util.keystr(path)
