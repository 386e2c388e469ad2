"""One self-contained page: table, plots, the prompt's ladder, and every example's answers."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from pintern.report import pieces
from pintern.report.accounting import pays_after
from pintern.report.table import BEST, footer, table_cells


def write_html(
    path: Path | str,
    summary: dict,
    *,
    ladder: Sequence[Mapping],
    predictions: Mapping[str, Sequence[Mapping]],
    config: Mapping,
    plots: Mapping[str, Path | str],
    command: str,
    versions: Mapping[str, str],
) -> None:
    """Writes the report as one file that needs no network, no server and no other file.

    Args:
      path: `index.html`.
      summary: what `accounting.summarise` gave.
      ladder: the template at each level: `asked` and `got` (keep rates), `tokens`, `text`.
      predictions: arm to its answers, all arms over the same examples in the same order: `query`,
        `gold`, `prediction`, `score` (0 to 100), `slice`. The first 500 examples are shown.
      config: the run's, JSON-ready.
      plots: caption to PNG.
      command: the line that made this run.
      versions: library to version.

    Raises:
      UserError: arms that answered different examples, or a plot that isn't there.
    """
    sections = [
        _headline(summary),
        pieces.section("Arms", _arms(summary)),
        pieces.section("What it pays", _payback(summary)),
        pieces.section("Plots", pieces.plots(plots)) if plots else "",
        pieces.section("The template at each level", pieces.ladder(ladder)) if ladder else "",
        pieces.section("Examples", pieces.examples(predictions)) if predictions else "",
        pieces.section("How it was made", pieces.provenance(config, command, versions)),
    ]
    title = f"pintern report: {summary['ours'] or summary['metric']}"
    pieces.write_page(path, title, sections, script=bool(predictions))


def _headline(summary: dict) -> str:
    """Our arm's figures, each beside the paper's claim."""
    if summary["ours"] is None:
        return ""
    ours, paper = summary["arms"][summary["ours"]], summary["paper"]
    cards = [
        (f"{ours['score']:.1f}", f"score ({summary['metric']})"),
        (
            _change(ours["token_reduction"]),
            f"prompt tokens (paper: {_change(paper['token_reduction'])})",
        ),
        (
            f"{ours['speedup_vs_full']:.1f}×",
            f"speed (paper: {paper['speedup']}×); "
            f"{ours['speedup_vs_cached']:.1f}× against a cached prefix",
        ),
        (
            _change(ours["cost_saving"]),
            f"cost (paper: {_change(paper['cost_saving'])}); "
            f"{_change(ours['cost_saving_vs_cached'])} against a cached prefix",
        ),
    ]
    return (
        '<div class="cards">'
        + "".join(
            f'<div class="card"><b>{escape(figure)}</b><small>{escape(label)}</small></div>'
            for figure, label in cards
        )
        + "</div>"
    )


def _change(saved: float) -> str:
    """A saved fraction as the change it is: 0.9 is −90.0 %, −0.1 is +10.0 %."""
    return f"{-100 * saved:+.1f} %".replace("-", "−")


def _arms(summary: dict) -> str:
    headings, rows = table_cells(summary)
    best = frozenset(index for index, row in enumerate(rows) if row[1].endswith(BEST))
    return pieces.table(headings, rows, best) + f"<p>{escape(footer(summary))}</p>"


def _payback(summary: dict) -> str:
    """Training cost, and the requests after which it is earned, by price list and by machine."""
    headings = [
        "Arm",
        "trained",
        "interval",
        "training $",
        "pays after, vs full",
        "vs cached",
        "machine $/1k requests",
        "pays after, vs full",
        "vs cached",
    ]
    rows = []
    for name, arm in summary["arms"].items():
        interval, machine = arm["interval"], arm["machine"]
        trained = bool(arm["training_seconds"])
        rows.append(
            [
                name,
                arm["trained"],
                "–" if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}",
                f"{arm['training_cost']:.3g}" if trained else "–",
                *(_requests(arm, trained)),
                f"{machine['cost_per_1000_requests']:.3g}",
                *(_requests(machine, trained)),
            ]
        )
    note = (
        "Requests after which the training has paid for itself: by the price list, then by "
        f"machine time at {summary['usd_per_hour']:g} USD per hour, one request at a time."
    )
    return pieces.table(headings, rows) + f"<p>{escape(note)}</p>"


def _requests(costs: Mapping, trained: bool) -> list[str]:
    if not trained:
        return ["–", "–"]
    keys = ("break_even_requests", "break_even_requests_vs_cached")
    return [pays_after(costs[key]) for key in keys]
