"""From the ledger to `report/`: table.md, table.csv, plots, and one page."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pintern.config import differences
from pintern.errors import UserError
from pintern.files import write_atomically
from pintern.locks import lock
from pintern.report import study_plots as plots
from pintern.report.study_page import Part, write_study_page
from pintern.studies import tables
from pintern.studies.across import across_tasks, transfers_of
from pintern.studies.folder import finished_lines, folder_of
from pintern.studies.ledger import Ledger
from pintern.studies.line import versions
from pintern.studies.results import Result, dig, read_predictions, results_of
from pintern.studies.study import Cell, Lines, Study, cells_of, slug


def write_report(study: Study, workdir: Path, *, command: str) -> tuple[str, Path]:
    """Writes the report of what is finished; the tables as Markdown, and the page's path.

    Raises:
      UserError: nothing is finished, or a finished cell's folder is gone.
    """
    finished = finished_lines(study, workdir)
    cells = cells_of(study)
    if not finished:
        raise UserError(
            f"No cell of {study.name!r} is finished in {workdir}.", "Run the study first."
        )
    ledger = Ledger(workdir).lines()
    changed = sum(cell.name in ledger and cell.name not in finished for cell in cells)
    results = results_of(study, [line for _, line in finished.values()], workdir)
    unfinished = len(cells) - len(finished)
    across = across_tasks(study, results, workdir)
    text = tables.markdown(study, results, unfinished, changed, across)
    report = workdir / "report"
    # Of processes that share a grid the last one to end writes last.
    with lock(workdir / "locks" / "report"):
        report.mkdir(parents=True, exist_ok=True)
        write_atomically(report / "table.md", text)
        write_atomically(report / "table.csv", tables.to_csv(results))
        by_name = {name: cell for name, (cell, _) in finished.items()}
        groups = tables.grouped(results)
        parts = [_part(study, group, by_name, workdir, report) for group in groups]
        first = next(iter(by_name.values()))
        warnings = []
        if unfinished:
            warnings.append(f"{unfinished} of {len(cells)} cells are not finished.")
        if changed:
            warnings.append(f"{changed} of them were run with another configuration: left out.")
        write_study_page(
            report / "index.html",
            name=study.name,
            question=study.question,
            warnings=warnings,
            parts=parts,
            legend=tables.legend(study, results),
            across={title: tuple(table) for title, *table in across},
            papers={p.source: (*tables.paper_table(p), p.note) for p in study.paper},
            notes=study.notes,
            pictures=_across(study, results, report),
            config=first.arm.config.to_dict(),
            changes=_changes(by_name.values(), first),
            command=command,
            versions=versions(),
        )
    return text, report / "index.html"


def _part(
    study: Study,
    group: Sequence[Result],
    cells: Mapping[str, Cell],
    workdir: Path,
    report: Path,
) -> Part:
    title, head, rows = tables.table(study, group)
    stem = f"{slug(group[0].task)}-{slug(group[0].model)}"
    firsts = {result.arm: result.first for result in group}
    folders = {
        arm: folder_of(cells[line["cell"]], workdir)
        for arm, line in firsts.items()
        if line["steps"]
    }
    predictions = {arm: read_predictions(line, workdir) for arm, line in firsts.items()}
    asked = [answer["query"] for answer in next(iter(predictions.values()))]
    notes = {line["note"] for result in group for line in result.lines.values() if line["note"]}
    return Part(
        title=title,
        head=head,
        rows=rows,
        notes=sorted(notes),
        pictures=_pictures(study, group, folders, report, stem),
        ladder=_ladder([cells[line["cell"]] for line in firsts.values()], workdir),
        # Arms whose first seed drew another test split can't stand beside the others.
        predictions={
            arm: answers
            for arm, answers in predictions.items()
            if [answer["query"] for answer in answers] == asked
        },
    )


def _pictures(
    study: Study, group: Sequence[Result], folders: Mapping[str, Path], report: Path, stem: str
) -> dict[str, Path]:
    """Every plot that the group's lines have the numbers for."""
    found: dict[str, Path] = {}
    metric = group[0].first["metric"]

    def add(kind: str, caption: str) -> Path:
        path = report / f"{stem}-{kind}.png"
        found[f"{caption} ({kind})" if caption in found else caption] = path
        return path

    points = [
        plots.Point(
            r.arm,
            r.mean("cost_per_1000_requests"),
            r.score,
            None if r.is_corpus else r.interval,
            bool(r.first["steps"]),
        )
        for r in group
    ]
    plots.plot_pareto(points, metric, add("pareto", "Score against cost per request"))
    if any(len(r.scores) > 1 for r in group):
        scores = {r.arm: list(r.scores.values()) for r in group}
        plots.plot_spread(scores, metric, add("spread", "Scores of every seed"))
    for line in study.lines:
        series = _series(group, line)
        if series:
            caption = line.caption or f"{line.measure} over {line.x}"
            path = add(f"lines-{slug(line.measure)}-{slug(line.x)}-{slug(line.by)}", caption)
            named = {study.prompted, study.none, study.reference} - {""}
            levels = {r.arm: r.score for r in group if r.arm in named and line.x not in r.factors}
            levels = levels if line.measure == "score" else {}
            y = f"score ({metric})" if line.measure == "score" else line.measure
            plots.plot_lines(series, path, x=line.x, y=y, title=caption, levels=levels)
    courses = {arm: course_of(folder) for arm, folder in folders.items()}
    if any(len(course) > 1 for course in courses.values()):
        plots.plot_timeline(courses, add("curriculum", "Curriculum of every trained arm"))
    kl = _kl(group)
    if kl:
        plots.plot_lines(
            kl,
            add("kl", "KL to the prompted base at the end of each stage"),
            x="optimizer step",
            y="KL, nats per token",
            title="What is left to internalise",
        )
    for result in group:
        stale = _staleness(result)
        if stale:
            path = add(f"stale-{slug(result.arm)}", f"After an edit of the prompt: {result.arm}")
            levels = {
                "affected, before the edit": result.mean("measures.staleness.before"),
                "affected, base with the new prompt": result.mean(
                    "measures.staleness.prompted.affected"
                ),
            }
            levels = {k: v for k, v in levels.items() if v is not None}
            plots.plot_lines(
                stale,
                path,
                x="further optimizer steps",
                y=f"score ({metric})",
                title=f"{result.arm} after an edit of the prompt",
                levels=levels,
            )
    return found


def _series(group: Sequence[Result], line: Lines) -> dict[str, list]:
    series: dict[str, list[tuple[float, float, float | None]]] = {}
    for r in group:
        x = r.factors.get(line.x)
        if x is None or isinstance(x, str):
            continue
        score = line.measure == "score"
        y = r.score if score else r.mean(f"measures.{line.measure}")
        if y is not None:
            name = str(r.factors.get(line.by, "")) if line.by else line.measure
            series.setdefault(name, []).append((x, y, r.spread if score else None))
    return series


def _mean_curve(curves: Sequence[Sequence[Mapping]], y: str) -> list[tuple]:
    """Mean and spread over seeds at each step that all have."""
    by_step: dict[int, list[float]] = {}
    for curve in curves:
        for point in curve:
            by_step.setdefault(point["step"], []).append(dig(point, y))
    return [
        (step, float(np.mean(ys)), float(np.std(ys, ddof=1)) if len(ys) > 1 else None)
        for step, ys in sorted(by_step.items())
        if len(ys) == len(curves)
    ]


def _kl(group: Sequence[Result]) -> dict[str, list[tuple]]:
    series = {}
    for result in group:
        curves = []
        for line in result.lines.values():
            found = dig(line, "measures.kl")
            if found:
                ends = [
                    {"step": 0, "kl": found["untrained"]},
                    *found["stages"],
                    {"step": line["steps"], "kl": found["final"]},
                ]
                curves.append(ends)
        if curves:
            series[result.arm] = _mean_curve(curves, "kl")
    return series


def _staleness(result: Result) -> dict[str, list[tuple]]:
    curves = [dig(line, "measures.staleness.curve") for line in result.lines.values()]
    curves = [curve for curve in curves if curve]
    if not curves:
        return {}
    return {name: _mean_curve(curves, name) for name in ("affected", "other")}


def _across(study: Study, results: Sequence[Result], report: Path) -> dict[str, Path]:
    """Transfer between tasks, one heat map for each model."""
    pictures = {}
    for model in dict.fromkeys(r.model for r in results):
        panels = transfers_of(study, [r for r in results if r.model == model])
        if panels:
            path = report / f"transfer-{slug(model)}.png"
            metrics = {r.first["metric"] for r in results}
            plots.plot_heat_map(panels, ", ".join(sorted(metrics)), path)
            pictures[f"Transfer, {model}: trained on the row's task, scored on the column's"] = path
    return pictures


def course_of(folder: Path) -> list[plots.Stretch]:
    """Levels over the steps, as a run's metrics.jsonl has them."""
    rows = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    found = []
    for (rate, shots), steps in itertools.groupby(
        rows, key=lambda row: (row["keep_rate"], row["shots"])
    ):
        steps = list(steps)
        found.append(plots.Stretch(steps[0]["step"], steps[-1]["step"] + 1, rate, shots))
    return found


def _ladder(cells: Sequence[Cell], workdir: Path) -> list[dict[str, Any]]:
    """Every text that any of the cells has at some level, the fullest first."""
    found: dict[tuple, dict[str, Any]] = {}
    for cell in cells:
        prompts = folder_of(cell, workdir) / "prompts"
        record = prompts / "ladder.json"
        if not record.exists():
            continue
        for rung in json.loads(record.read_text()):
            text = (prompts / rung["file"]).read_text(encoding="utf-8")
            found.setdefault((rung["asked"], text), {**rung, "text": text})
    return sorted(found.values(), key=lambda rung: -rung["asked"])


def _changes(cells: Any, first: Cell) -> dict[str, list[str]]:
    """What each arm's configuration and inference prompt change, at the first task and model."""
    found = {}
    for cell in cells:
        if (cell.task, cell.model, cell.seed) != (first.task, first.model, first.seed):
            continue
        prompt = dataclasses.asdict(cell.arm.prompt)
        shown = ", ".join(f"{name} {value:g}" for name, value in prompt.items())
        changed = differences(first.arm.config, cell.arm.config)
        found[cell.arm.name] = [f"at inference: {shown}", *changed]
    return found
