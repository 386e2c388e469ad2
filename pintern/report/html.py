"""One self-contained page: table, plots, the prompt's ladder, and every example's answers."""

import base64
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from pintern.errors import UserError
from pintern.report.page import SCRIPT, STYLE
from pintern.report.table import BEST, footer, table_cells

MAX_EXAMPLES = 500
RIGHT_SCORE = 100
# The browser itself then refuses to load anything that isn't in the file.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


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
    title = f"pintern report: {summary['ours'] or summary['metric']}"
    body = "\n".join(
        [
            f"<h1>{escape(title)}</h1>",
            _headline(summary),
            _section("Arms", _arms(summary)),
            _section("What it pays", _payback(summary)),
            _section("Plots", _plots(plots)) if plots else "",
            _section("The template at each level", _ladder(ladder)) if ladder else "",
            _section("Examples", _examples(predictions)) if predictions else "",
            _section("How it was made", _provenance(config, command, versions)),
        ]
    )
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n"
        f"{f'<script>{SCRIPT}</script>' if predictions else ''}\n</body>\n</html>\n"
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".partial")
    # Text that a model or a database made may hold halves of characters.
    unfinished.write_text(page, encoding="utf-8", errors="replace")
    os.replace(unfinished, path)


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>"


def _table(
    headings: Iterable[object], rows: Iterable[Sequence[object]], best: frozenset[int] = frozenset()
) -> str:
    """A table in a box that scrolls sideways; cells are escaped here."""
    head = "".join(f"<th>{escape(str(heading))}</th>" for heading in headings)
    lines = [
        f"<tr{' class=best' if index in best else ''}>"
        + "".join(f"<td>{escape(str(cell))}</td>" for cell in row)
        + "</tr>"
        for index, row in enumerate(rows)
    ]
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>'
        + "\n".join(lines)
        + "</tbody></table></div>"
    )


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
    return _table(headings, rows, best) + f"<p>{escape(footer(summary))}</p>"


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
    return _table(headings, rows) + f"<p>{escape(note)}</p>"


def _requests(costs: Mapping, trained: bool) -> list[str]:
    if not trained:
        return ["–", "–"]
    keys = ("break_even_requests", "break_even_requests_vs_cached")
    return ["never" if costs[key] is None else f"{costs[key]:,.0f}" for key in keys]


def _plots(plots: Mapping[str, Path | str]) -> str:
    figures = []
    for caption, file in plots.items():
        if not Path(file).is_file():
            raise UserError(f"Plot {caption!r} isn't at {file}.", "Draw it before the page.")
        data = base64.b64encode(Path(file).read_bytes()).decode("ascii")
        figures.append(
            f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )
    return f'<div class="plots">{"".join(figures)}</div>'


def _ladder(ladder: Sequence[Mapping]) -> str:
    rungs = [
        f'<div class="rung"><h3>τ {rung["got"]:.2f} <small>(asked {rung["asked"]:.2f}, '
        f"{rung['tokens']:,} tokens)</small></h3>"
        f"<pre>{escape(rung['text']) or '(empty)'}</pre></div>"
        for rung in ladder
    ]
    return f'<div class="ladder">{"".join(rungs)}</div>'


def _examples(predictions: Mapping[str, Sequence[Mapping]]) -> str:
    """Filters, and one unfolding entry per example with every arm's answer."""
    first_arm, first = next(iter(predictions.items()))
    for arm, answers in predictions.items():
        asked = [answer["query"] for answer in answers]
        if asked != [answer["query"] for answer in first]:
            raise UserError(
                f"Arms {first_arm!r} and {arm!r} answered different examples.",
                "Evaluate every arm on the same examples in the same order.",
            )
    slices = dict.fromkeys(answer["slice"] for answer in first)
    options = "".join(f"<option>{escape(str(name))}</option>" for name in slices)
    filters = "".join(
        f'<button data-show="{kind}" aria-pressed="{str(kind == "all").lower()}">{label}</button>'
        for kind, label in (("all", "all"), ("disagree", "arms disagree"), ("wrong", "wrong"))
    )
    entries = [
        _example(index, {arm: answers[index] for arm, answers in predictions.items()})
        for index in range(min(len(first), MAX_EXAMPLES))
    ]
    return (
        f'<div class="filters">{filters}<select id="slice" aria-label="slice">'
        f'<option value="">every slice</option>{options}</select><small id="count"></small></div>'
        f"<p>{len(entries)} of {len(first)} examples.</p>\n" + "\n".join(entries)
    )


def _example(index: int, answers: Mapping[str, Mapping]) -> str:
    right = [answer["score"] >= RIGHT_SCORE for answer in answers.values()]
    example = next(iter(answers.values()))
    rows = "".join(
        f"<tr><td>{escape(arm)}</td><td>{_verdict(answer['score'])}</td>"
        f"<td><pre>{escape(answer['prediction'])}</pre></td></tr>"
        for arm, answer in answers.items()
    )
    return (
        f'<details class="example" data-disagree="{_yes(len(set(right)) > 1)}" '
        f'data-wrong="{_yes(not all(right))}" data-slice="{escape(str(example["slice"]))}">'
        f"<summary>{index + 1}. {escape(example['query'])} "
        f"<small>{escape(str(example['slice']))}, {sum(right)} of {len(right)} right</small>"
        f'</summary><div class="scroll"><table><tr><th>Arm</th><th>Score</th><th>Answer</th></tr>'
        f"<tr><td>gold</td><td></td><td><pre>{escape(example['gold'])}</pre></td></tr>"
        f"{rows}</table></div></details>"
    )


def _verdict(score: float) -> str:
    if score >= RIGHT_SCORE:
        return '<span class="right">✓ right</span>'
    return f'<span class="wrong">✗ {f"{score:.1f}" if score else "wrong"}</span>'


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _provenance(config: Mapping, command: str, versions: Mapping[str, str]) -> str:
    text = json.dumps(config, indent=2, ensure_ascii=False, default=str)
    return (
        f'<div class="card"><pre>{escape(command)}</pre></div>'
        f"<details><summary>Configuration</summary><pre>{escape(text)}</pre></details>"
        f"<details><summary>Versions</summary>{_table(['Library', 'Version'], versions.items())}"
        "</details>"
    )
