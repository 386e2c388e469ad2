"""The summary as a table: plain text, Markdown, or on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

BEST = "*"


def table_cells(summary: dict) -> tuple[list[str], list[list[str]]]:
    """Headings, and one row of formatted cells per arm; the best score bears a `*`."""
    arms = summary["arms"]
    slices = list(dict.fromkeys(name for arm in arms.values() for name in arm["slices"]))
    best = max(arm["score"] for arm in arms.values())
    headings = [
        "Arm",
        f"score ({summary['metric']})",
        *slices,
        "prompt tokens",
        "out tokens",
        "prefill ms",
        "decode ms",
        "total ms",
        "speed vs full",
        "vs cached",
        "cost $/1k requests",
        "cost saving",
    ]
    rows = [
        [
            name,
            f"{arm['score']:.1f}{BEST if arm['score'] == best else ''}",
            *(f"{arm['slices'][part]:.1f}" if part in arm["slices"] else "–" for part in slices),
            f"{arm['tokens']['prompt']:.0f}",
            f"{arm['tokens']['output']:.1f}",
            f"{1000 * arm['latency']['prefill_p50']:.1f}",
            f"{1000 * arm['latency']['decode_p50']:.1f}",
            f"{1000 * arm['latency']['total_p50']:.1f}",
            f"{arm['speedup_vs_full']:.2f}×",
            f"{arm['speedup_vs_cached']:.2f}×",
            f"{arm['cost_per_1000_requests']:.4g}",
            f"{100 * arm['cost_saving']:.1f} %",
        ]
        for name, arm in arms.items()
    ]
    return headings, rows


def footer(summary: dict) -> str:
    """One line: the price list, and the paper's claims beside our own arm's figures."""
    prices, paper = summary["prices"], summary["paper"]
    line = (
        f"{BEST} best score. Prices ({prices['name']}): input {prices['input']:.2f}, "
        f"cached {prices['cached_input']:.2f}, output {prices['output']:.2f} {prices['unit']}. "
        f"{paper['source']} claims {_claims(paper, paper['speedup'])}"
    )
    if summary["ours"] is None:
        return line + "."
    ours = summary["arms"][summary["ours"]]
    return line + f"; {summary['ours']} here: {_claims(ours, ours['speedup_vs_full'])}."


def render_table(summary: dict, *, markdown: bool = False) -> str:
    """The table and its footer as text, with columns aligned, or as Markdown."""
    headings, rows = table_cells(summary)
    if markdown:
        rule = [":---"] + ["---:"] * (len(headings) - 1)
        escaped = [[cell.replace("|", "\\|") for cell in row] for row in (headings, rule, *rows)]
        lines = ["| " + " | ".join(row) + " |" for row in escaped]
        return "\n".join([*lines, "", footer(summary).replace("*", "\\*")])
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    lines = [_align(row, widths) for row in (headings, ["-" * width for width in widths], *rows)]
    return "\n".join([*lines, "", footer(summary)])


def print_table(summary: dict, console: Console | None = None) -> None:
    """Prints the table on the terminal, in as many parts as its width asks for."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    headings, rows = table_cells(summary)
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    for columns in _parts(widths, console.width):
        table = Table(header_style="bold")
        for column in columns:
            justify = "right" if column else "left"
            table.add_column(Text(headings[column]), justify=justify, no_wrap=True)
        for row in rows:
            style = "bold green" if row[1].endswith(BEST) else None
            table.add_row(*(Text(row[column]) for column in columns), style=style)
        console.print(table)
    console.print(Text(footer(summary)))


def _parts(widths: list[int], available: int) -> list[list[int]]:
    """Columns by part: each has the arms' names, and as many more as fit."""
    # A cell is framed by a space on either side and a line.
    start = widths[0] + 4
    parts, used = [[0]], start
    for column, width in enumerate(widths[1:], start=1):
        if used + width + 3 > available and len(parts[-1]) > 1:
            parts.append([0])
            used = start
        parts[-1].append(column)
        used += width + 3
    return parts


def _claims(figures: dict, times: float) -> str:
    return (
        f"{100 * figures['token_reduction']:.0f} % fewer tokens, {times:.1f}× speed, "
        f"{100 * figures['cost_saving']:.1f} % less cost"
    )


def _align(row: list[str], widths: list[int]) -> str:
    first, *others = (
        cell.rjust(width) if index else cell.ljust(width)
        for index, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return "  ".join([first, *others]).rstrip()
