"""The company comparison over several seeds, with intervals.

    python -m experiments.company.study --workdir=runs/study

Each seed trains every arm anew (data order, adapter and drawn log queries differ; the base and the
test set don't). Finished arms are kept, so that an interrupted study goes on where it was.
"""

from pathlib import Path

from absl import flags

from pintern import cli

WORKDIR = flags.DEFINE_string("workdir", "runs/study", "Folder of the study.")
SEEDS = flags.DEFINE_integer("seeds", 3, "How many seeds, from 0.")


def main(_: list[str]) -> None:
    """Runs all arms for every seed and prints one table."""
    import numpy as np

    from experiments.company.arms import company_arms
    from pintern.arms import run_arms
    from pintern.evaluation.metrics import bootstrap_interval

    workdir = Path(WORKDIR.value)
    scores: dict[str, list[list[float]]] = {}
    slices: dict[str, dict[str, list[float]]] = {}
    for seed in range(SEEDS.value):
        print(f"seed {seed}", flush=True)
        for m in run_arms(company_arms(seed), workdir / f"seed-{seed}"):
            if m.arm.scored_as:
                continue
            scores.setdefault(m.arm.name, []).append(m.evaluation.scores.per_example)
            for name, found in m.evaluation.slices.items():
                slices.setdefault(m.arm.name, {}).setdefault(name, []).append(found.value)
    names = list(next(iter(slices.values())))
    lines = [
        f"| Arm | score | 95 % over examples | SD over seeds | {' | '.join(names)} |",
        "| :--- | ---: | ---: | ---: |" + " ---: |" * len(names),
    ]
    for arm, found in scores.items():
        grid = np.asarray(found)  # [seed, example]
        low, high = bootstrap_interval(grid.mean(0).tolist(), seed=0)
        spread = grid.mean(1).std(ddof=1) if len(grid) > 1 else 0.0
        parts = " | ".join(f"{np.mean(slices[arm][name]):.1f}" for name in names)
        lines.append(
            f"| {arm} | {grid.mean():.1f} | {low:.1f}–{high:.1f} | {spread:.1f} | {parts} |"
        )
    lines += ["", f"{SEEDS.value} seeds, {grid.shape[1]} test questions, execution accuracy."]
    table = "\n".join(lines)
    (workdir / "study.md").write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    cli.run(main)
