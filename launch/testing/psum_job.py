"""A small JAX job of any number of processes, to try a launcher with.

    python -m launch.local --processes=2 -- python -m launch.testing.psum_job --out=sums.json

Each process adds the step and its own number; the sum over all is taken on the devices. The state
after each step goes to the file, from which a restarted job goes on. SIGTERM stops all of them
after the same step.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from absl import flags

from pintern import distributed

VALUES = flags.FlagValues()
flags.DEFINE_string("out", None, "JSON file of the state.", required=True, flag_values=VALUES)
flags.DEFINE_integer("steps", 3, "Steps.", flag_values=VALUES)
flags.DEFINE_float("seconds", 0.0, "Time that a step takes at least.", flag_values=VALUES)


def main() -> None:
    """Runs or resumes the job."""
    stop: list[int] = []
    distributed.initialize()
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import multihost_utils

    signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
    out, first = Path(VALUES.out), jax.process_index() == 0
    state = {"step": 0, "sum": 0.0, "starts": 0, "processes": jax.process_count()}
    if out.exists():
        state |= json.loads(out.read_text())
    multihost_utils.sync_global_devices("read")
    state["starts"] += 1
    while state["step"] < VALUES.steps:
        mine = jnp.array([1.0 + jax.process_index() + state["step"], len(stop)])
        total, stopping = np.sum(multihost_utils.process_allgather(mine).reshape(-1, 2), axis=0)
        state |= {"step": state["step"] + 1, "sum": state["sum"] * 0.5 + float(total)}
        if first:
            temporary = out.with_suffix(".tmp")
            temporary.write_text(json.dumps(state))
            os.replace(temporary, out)
        print(f"step {state['step']} of {VALUES.steps}, sum {state['sum']:g}", flush=True)
        if stopping and state["step"] < VALUES.steps:
            sys.exit(distributed.stopped_status())
        time.sleep(VALUES.seconds)


if __name__ == "__main__":
    VALUES(sys.argv)
    main()
