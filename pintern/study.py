"""Runs a study: a grid of arms, tasks, models and seeds, into one ledger and one page.

    python -m pintern.study --study=experiments/studies/schedules.py --workdir=runs/schedules

Every cell is an ordinary run folder below cells/. Run the same command again after an interruption
and it goes on: finished cells stand in ledger.jsonl, the one that was running goes on from its last
checkpoint. Start it twice and both share the grid. When it ends (or with --report, at once),
report/ holds table.md, table.csv, the plots and index.html.

    --list            shows every cell and its state, and runs nothing
    --only=PATTERNS   runs the cells whose names match, e.g. '*/promptintern*/seed-0,*/direct*'
    --redo=PATTERNS   may run cells anew whose configuration the study file has changed
    --report          writes the report of what is finished, and runs nothing
"""

import sys
from contextlib import redirect_stdout

from absl import flags

from pintern import cli
from pintern.errors import UserError

STUDY = flags.DEFINE_string(
    "study", None, "FILE with get_study(), or FILE:ARGUMENT.", required=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the study.", required=True)
ONLY = flags.DEFINE_list("only", [], "Patterns over cell names: run these alone.")
REDO = flags.DEFINE_list("redo", [], "Patterns over changed cells that may be run anew.")
LIST = flags.DEFINE_boolean("list", False, "Show cells and their state; run nothing.")
REPORT = flags.DEFINE_boolean("report", False, "Write the report of what is there; run nothing.")


def main(_: list[str]) -> None:
    """Lists, runs or reports."""
    check_flags()
    from pintern.remote import local_folder
    from pintern.studies.load import load_study

    study = load_study(STUDY.value)
    workdir = local_folder(WORKDIR.value, "study.json", "study")
    if LIST.value:
        from pintern.studies.folder import states

        for name, state in states(study, workdir).items():
            print(f"{state:<10} {name}")
        return
    failed: UserError | None = None
    if not REPORT.value:
        from pintern.studies.runner import CellsFailedError, run_study

        try:
            with redirect_stdout(sys.stderr):  # what runs tell; stdout has the table alone
                complete = run_study(study, workdir, only=ONLY.value, redo=REDO.value)
            if not complete:
                print("Stopped by a signal. The same command goes on from there.")
                return
        except CellsFailedError as error:
            failed = error
    from pintern.studies.folder import finished_lines
    from pintern.studies.report import write_report

    if failed and not finished_lines(study, workdir):
        raise failed
    command = f"python -m pintern.study --study={STUDY.value} --workdir={workdir}"
    table, page = write_report(study, workdir, command=command)
    print(table)
    print(f"\nReport: {page}", file=sys.stderr)
    if failed:
        raise failed


def check_flags() -> None:
    """Refuses options that nothing would look at."""
    flags_of = {"list": LIST, "report": REPORT, "only": ONLY, "redo": REDO}
    given = [f"--{name}" for name, flag in flags_of.items() if flag.value]
    if len(given) > 1 and (LIST.value or REPORT.value):
        raise UserError(
            f"{given[0]} runs nothing and tells of all cells; {given[1]} has no use beside it.",
            f"Leave {given[1]} out.",
        )


if __name__ == "__main__":
    cli.run(main)
