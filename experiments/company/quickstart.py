"""The main job on the embedded default: internalise the company's prompt, and show what it saved.

    python -m experiments.company.quickstart --workdir=runs/quickstart

Prints one table (the base with and without its prompt, three ways to train, and ours) and writes an
HTML report. Run it again after an interruption and it goes on where it was.
"""

import resource
import sys
import time
from contextlib import redirect_stdout

from absl import flags

from pintern import cli

WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "Folder of the run.")
SEED = flags.DEFINE_integer(
    "seed", 0, "Seed of every random choice.", lower_bound=0, upper_bound=2**32 - 1
)
REQUESTS = flags.DEFINE_integer(
    "requests", 40, "Requests timed per arm, one at a time.", lower_bound=1
)
USD_PER_HOUR = flags.DEFINE_float(
    "usd_per_hour", 0.10, "Price of this machine, for break-even.", lower_bound=0.0
)


def main(_: list[str]) -> None:
    """Runs all arms and prints the table."""
    from experiments.company.arms import CACHED, FULL, OURS, company_arms
    from pintern.arms import run_arms, summary_of, time_arms, write_report
    from pintern.remote import local_folder
    from pintern.report.accounting import PriceList, machine_cost
    from pintern.report.table import print_table, render_table

    began = time.monotonic()
    machine_cost(0.0, USD_PER_HOUR.value)  # a price that is none is told before the training
    workdir = local_folder(WORKDIR.value, "arms", "quickstart")
    with redirect_stdout(sys.stderr):  # what runs tell; stdout has the table alone
        measured = run_arms(company_arms(SEED.value), workdir)
        latencies = time_arms(measured, requests=REQUESTS.value)
    summary = summary_of(
        measured,
        latencies,
        full=FULL,
        cached=CACHED,
        ours=OURS,
        prices=PriceList(),
        usd_per_hour=USD_PER_HOUR.value,
    )
    command = f"python -m experiments.company.quickstart --seed={SEED.value}"
    page = write_report(workdir, measured, summary, ours=OURS, command=command)
    table = render_table(summary, markdown=True) + "\n"
    (page.parent / "table.md").write_text(table, encoding="utf-8")
    if sys.stdout.isatty():
        print_table(summary)
    else:
        print(render_table(summary))
    # In KiB on Linux, in bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
    print(f"Took {time.monotonic() - began:.0f} s and {peak:.1f} GB at most. Report: {page}")


if __name__ == "__main__":
    cli.run(main)
