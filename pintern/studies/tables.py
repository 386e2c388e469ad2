"""A study's results as tables: Markdown to read, CSV to compute with."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Collection, Sequence

from pintern.report.accounting import pays_after
from pintern.studies.across import Part
from pintern.studies.results import Result
from pintern.studies.statistics import RESAMPLES
from pintern.studies.study import PaperTable, Study

Column = tuple[str, Callable[[Result], str]]

# Numbers of the ledger's measures that have a column of their own, where any cell has them.
MEASURES = {
    "KL untrained": "measures.kl.untrained",
    "KL final": "measures.kl.final",
    "forgetting": "measures.forgetting.change",
    "other task before": "measures.forgetting.before.score",
    "other task after": "measures.forgetting.after.score",
    "stale": "measures.staleness.stale.affected",
    "steps to mend": "measures.staleness.steps_to_mend",
    "prefill ms": "measures.latency.prefill_p50",
    "decode ms": "measures.latency.decode_p50",
}


def markdown(
    study: Study,
    results: Sequence[Result],
    unfinished: int,
    left_out: int,
    across: Sequence[Part] = (),
) -> str:
    """Question, one table per task and model, what they say together, the paper's, notes."""
    parts = [f"# {study.name}", study.question]
    if unfinished:
        parts.append(f"**{unfinished} cells are not finished; the tables are of the others.**")
    if left_out:
        parts.append(
            f"**{left_out} finished cells were run with another configuration and are left out.**"
        )
    for group in grouped(results):
        heading, head, rows = table(study, group)
        parts += [f"## {heading}", markdown_table(head, rows)]
        notes = {line["note"] for r in group for line in r.lines.values() if line["note"]}
        parts += sorted(notes)
    parts += [legend(study, results)] if results else []
    for heading, head, rows, below in across:
        parts += [f"## {heading}", markdown_table(head, rows), below]
    for paper in study.paper:
        head, rows = paper_table(paper)
        parts += [f"## Published: {paper.source}", markdown_table(head, rows)]
        parts += [paper.note] if paper.note else []
    parts += study.notes
    return "\n\n".join(parts) + "\n"


def grouped(results: Sequence[Result]) -> list[list[Result]]:
    """Results of one task and model together."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.task, result.model), []).append(result)
    return list(groups.values())


def table(study: Study, group: Sequence[Result]) -> tuple[str, list[str], list[list[str]]]:
    """Title, headings and cells of one task and model; the best score bears a `*`."""
    first = group[0]
    columns = _columns(study, group)
    rows = [[cell(result) for _, cell in columns] for result in group]
    title = f"{first.task}, {first.model} ({first.first['metric']})"
    return title, [name for name, _ in columns], rows


def _columns(study: Study, group: Sequence[Result]) -> list[Column]:
    best = max(result.score for result in group)
    slices = list(dict.fromkeys(name for r in group for name in r.first["slices"]))
    factors = list(dict.fromkeys(name for r in group for name in r.factors))
    columns: list[Column] = [
        ("trained", lambda r: r.first["trained"]),
        ("seeds", lambda r: str(len(r.lines))),
        ("score", lambda r: f"{r.score:.1f}" + "*" * (r.score == best)),
    ]
    if any(r.is_corpus for r in group):
        columns.append(("mean of examples", lambda r: f"{r.examples:.1f}"))
    columns += [
        ("95 %", lambda r: "{:.1f}–{:.1f}".format(*r.interval)),
        ("SD over seeds", lambda r: _number(r.spread, ".1f")),
    ]
    if any(r.difference is not None for r in group):
        columns += [
            (f"Δ to {study.reference}", lambda r: _number(r.difference, "+.1f")),
            ("p (Holm)", lambda r: _p(r.p)),
        ]
    columns += [
        (name, lambda r, name=name: _number(r.mean(f"slices.{name}"), ".1f")) for name in slices
    ]
    further = list(dict.fromkeys(name for r in group for name in r.first["further"]))
    columns += [
        (name, lambda r, name=name: _number(r.mean(f"further.{name}"), ".1f")) for name in further
    ]
    if any(r.internalisation is not None for r in group):
        columns.append(("internalised", lambda r: _number(r.internalisation, ".2f")))
    columns += [
        ("prompt tokens", lambda r: _number(r.mean("tokens.prompt"), ".0f")),
        ("out tokens", lambda r: _number(r.mean("tokens.output"), ".1f")),
        ("$/1k requests", lambda r: _number(r.mean("cost_per_1000_requests"), ".4g")),
        ("training s", lambda r: _number(r.mean("training_seconds") or None, ".0f")),
    ]
    if any(r.break_even is not None for r in group):
        columns += [
            ("pays after", lambda r: _pays_after(r.break_even)),
            ("vs cached", lambda r: _pays_after(r.break_even_cached)),
        ]
    for name, path in MEASURES.items():
        if any(r.mean(path) is not None for r in group):
            scale = 1000 if name.endswith(" ms") else 1
            columns.append((name, lambda r, p=path, s=scale: _number(r.mean(p), ".3g", s)))
    taken = {"arm", *(name for name, _ in columns)}
    varied: list[Column] = [
        (_heading(name, taken), lambda r, name=name: _plain(r.factors.get(name)))
        for name in factors
    ]
    return [("arm", lambda r: r.arm), *varied, *columns]


def _heading(factor: str, taken: Collection[str]) -> str:
    """A factor's name, told apart from a column of the table's own that is called the same."""
    return f"{factor} (factor)" if factor in taken else factor


def legend(study: Study, results: Sequence[Result]) -> str:
    """What the columns mean."""
    prices = study.prices
    parts = [
        "\\* best score. 95 %: bootstrap over test examples, each with all of its seeds.",
        f"Cost at {prices.input:.2f} (input), {prices.cached_input:.2f} (cached) and "
        f"{prices.output:.2f} (output) {prices.unit}: {prices.note}.",
    ]
    if any(r.is_corpus for r in results):
        parts.append("The score is a corpus score; interval and tests are over the examples' own.")
    if study.reference:
        parts.append(
            f"Δ and p: paired permutation test over examples against {study.reference!r} "
            f"({RESAMPLES:,} draws of signs), Holm-corrected within each table."
        )
    if study.none and study.prompted:
        parts.append(
            f"Internalised: (score − {study.none!r}) / ({study.prompted!r} − {study.none!r}). Pays "
            f"after: requests until training ({study.usd_per_hour:g} USD per hour) is earned."
        )
    if any(r.mean("measures.kl.final") is not None for r in results):
        parts.append("KL: nats per token of gold completions, from the prompted base to the arm.")
    return " ".join(parts + _scored_apart(results))


def _scored_apart(results: Sequence[Result]) -> list[str]:
    """Names the tasks whose cells were scored in several ways, as by another library's version."""
    found: dict[str, Counter[str]] = {}
    for r in results:
        found.setdefault(r.task, Counter()).update(line["signature"] for line in r.lines.values())
    return [
        f"Scores on {task} were computed in several ways: "
        + "; ".join(f"{count} by {signature}" for signature, count in ways.most_common())
        + "."
        for task, ways in found.items()
        if len(ways) > 1
    ]


def paper_table(paper: PaperTable) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of published figures."""
    rows = [[arm, *(_plain(figure) for figure in figures)] for arm, figures in paper.rows.items()]
    return ["as published", *paper.columns], rows


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells as Markdown."""
    rule = [":---"] + ["---:"] * (len(head) - 1)
    cells = [
        *([[cell.replace("|", "\\|") for cell in head], rule]),
        *([cell.replace("|", "\\|").replace("*", "\\*") for cell in row] for row in rows),
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def to_csv(results: Sequence[Result]) -> str:
    """One row per task, model and arm, with unrounded numbers and every number of the measures."""
    records = []
    for r in results:
        place = {"task": r.task, "model": r.model, "arm": r.arm}
        record: dict[str, object] = {
            "metric": r.first["metric"],
            "trained": r.first["trained"],
            "seeds": " ".join(map(str, r.lines)),
            "score": r.score,
            "mean_of_examples": r.examples,
            "low": r.interval[0],
            "high": r.interval[1],
            "sd_over_seeds": r.spread,
            "difference": r.difference,
            "p_holm": r.p,
            "internalisation": r.internalisation,
            "break_even_requests": r.break_even,
            "break_even_requests_vs_cached": r.break_even_cached,
        }
        for seed, score in r.scores.items():
            record[f"score_seed_{seed}"] = score
        for path in _numeric_paths(r.first, ("slices", "further", "pass_at", "tokens", "measures")):
            record[path] = r.mean(path)
        for name in ("cost_per_1000_requests", "training_seconds", "training_cost"):
            record[name] = r.mean(name)
        taken = {*place, *record}
        factors = {_heading(name, taken): value for name, value in r.factors.items()}
        records.append(place | factors | record)
    fields = list(dict.fromkeys(field for record in records for field in record))
    out = io.StringIO()
    writer = csv.DictWriter(out, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def _numeric_paths(line: dict, groups: Sequence[str]) -> list[str]:
    found: list[str] = []

    def walk(value: object, path: str) -> None:
        if isinstance(value, dict):
            for name, part in value.items():
                walk(part, f"{path}.{name}")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append(path)

    for group in groups:
        walk(line[group], group)
    return found


def _number(value: float | None, form: str, scale: float = 1) -> str:
    return "–" if value is None else format(scale * value, form).replace("-", "−")


def _pays_after(requests: float | None) -> str:
    return "–" if requests is None else pays_after(requests)


def _p(p: float | None) -> str:
    if p is None:
        return "–"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _plain(value: str | float | None) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else f"{value:g}"
