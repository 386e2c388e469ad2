"""The summary and the training's course as PNGs.

No message rests on colour alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pintern.errors import UserError
from pintern.report.accounting import pays_after
from pintern.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    figure_of,
    new_figure,
    place_labels,
    save,
    tidy,
)

# The smoothed loss follows about this fraction of the run.
SMOOTHED_FRACTION = 1 / 60
MAX_STAGE_LABELS = 10
# Where the columns of figures beside a plot end, in points from its right edge.
COLUMNS = (70, 140)


def plot_score_against_tokens(summary: dict, path: Path | str) -> None:
    """Each arm's score, with its interval, over its prompt tokens on a logarithmic axis."""
    figure, axes = figure_of(8, 5)
    arms = summary["arms"]
    points = []
    for name, arm in arms.items():
        tokens, score = max(arm["tokens"]["prompt"], 1), arm["score"]
        color, marker = _mark(arm)
        if arm["interval"] is not None:
            axes.plot([tokens, tokens], arm["interval"], "_-", color=color, markersize=8, alpha=0.6)
        axes.plot(tokens, score, marker, color=color, markersize=9, markeredgecolor="white")
        points.append((tokens, score, name))
    axes.set_xscale("log")
    low, high = min(point[0] for point in points), max(point[0] for point in points)
    axes.set_xlim(low / 1.7, high * 1.7)
    ticks = [base * 10**power for power in range(7) for base in (1, 2, 5)]
    ticks = [tick for tick in ticks if low / 1.7 <= tick <= high * 1.7]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_xticks([], minor=True)
    bottom, top = axes.get_ylim()
    margin = 0.08 * (top - bottom)
    axes.set_ylim(max(bottom - margin, -4), min(top + margin, 104))
    axes.set_xlabel("prompt tokens per request (logarithmic)")
    axes.set_ylabel(f"score ({summary['metric']}, 0–100)")
    axes.set_title("Score against the prompt's length")
    kinds = {_mark(arm): _kind(arm) for arm in arms.values()}
    for (color, marker), label in kinds.items():
        axes.plot([], [], marker, color=color, markersize=8, label=label)
    axes.legend(loc="best", frameon=False, fontsize=9)
    place_labels(figure, axes, points)
    save(figure, path)


def plot_curriculum(metrics_rows: Sequence[Mapping], path: Path | str) -> None:
    """The prompt's way out over the training steps, and the loss below it.

    Args:
      metrics_rows: rows of `metrics.jsonl`; those with `step`, `loss`, `prompt_tokens`,
        `keep_rate` and `shots` are drawn, others (evaluations) are left out.
      path: PNG to write.

    Raises:
      UserError: no row has all five.
    """
    needed = ("step", "loss", "prompt_tokens", "keep_rate", "shots")
    rows = [row for row in metrics_rows if all(row.get(key) is not None for key in needed)]
    if not rows:
        raise UserError(
            f"No metrics row has all of {', '.join(needed)}.", "Train some steps first."
        )
    step, loss, tokens, rate, shots = ([row[key] for row in rows] for key in needed)
    figure = new_figure(8, 6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[1, 1.2])
    upper.step(step, tokens, where="post", color=BLUE, linewidth=2)
    upper.fill_between(step, tokens, step="post", color=BLUE, alpha=0.12)
    upper.set_ylim(0, 1.3 * max(max(tokens), 1))
    upper.set_ylabel("prompt tokens", color=BLUE)
    upper.set_title("Curriculum and loss")
    right = upper.twinx()
    right.step(step, rate, where="post", color=VERMILION, linewidth=1.8, linestyle="--")
    right.set_ylim(0, 1.3)
    right.set_yticks([0, 0.25, 0.5, 0.75, 1])
    right.set_ylabel("keep rate τ (dashed)", color=VERMILION)
    right.spines["top"].set_visible(False)
    changes = [0] + [i for i in range(1, len(rows)) if shots[i] != shots[i - 1]]
    for index in changes[:: -(-len(changes) // MAX_STAGE_LABELS)]:
        upper.axvline(step[index], color=GREY, linewidth=0.6, alpha=0.5)
        upper.annotate(
            f"k={shots[index]:g}",
            (step[index], 0.97),
            xycoords=("data", "axes fraction"),
            xytext=(3, 0),
            textcoords="offset points",
            va="top",
            fontsize=8,
            color=GREY,
        )
    lower.plot(step, loss, color=SKY, linewidth=0.8, alpha=0.7, label="each step")
    lower.plot(step, list(_smooth(loss)), color=BLUE, linewidth=2, label="smoothed")
    lower.set_xlabel("optimizer step")
    lower.set_ylabel("loss (nats per token)")
    lower.legend(frameon=False, fontsize=9)
    tidy(upper, lower)
    save(figure, path)


def plot_latency(summary: dict, path: Path | str) -> None:
    """Median prefill and decode time per arm, stacked, and the ninth decile of their sum."""
    arms = summary["arms"]
    figure, axes = figure_of(8, 1.4 + 0.45 * len(arms))
    names = list(arms)
    prefill, decode, total, ninth = (
        [1000 * arm["latency"][key] for arm in arms.values()]
        for key in ("prefill_p50", "decode_p50", "total_p50", "total_p90")
    )
    axes.barh(names, prefill, color=BLUE, label="prefill, median")
    axes.barh(names, decode, left=prefill, color=ORANGE, label="decode, median", hatch="//")
    axes.plot(ninth, names, "|", color="black", markersize=13, label="total, 90 %")
    for position, (median, tail, a, b) in enumerate(
        zip(total, ninth, prefill, decode, strict=True)
    ):
        axes.annotate(
            f"{median:.1f} ms",
            (max(tail, a + b), position),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlim(left=0)
    axes.set_xlabel("milliseconds per request")
    axes.set_title("Latency", pad=30)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False, fontsize=9)
    save(figure, path)


def plot_cost(summary: dict, path: Path | str) -> None:
    """Cost per thousand requests, and the requests after which a training has paid for itself."""
    arms = summary["arms"]
    figure, axes = figure_of(8.5, 1.4 + 0.45 * len(arms))
    costs = [arm["cost_per_1000_requests"] for arm in arms.values()]
    axes.barh(list(arms), costs, color=[_mark(arm)[0] for arm in arms.values()])
    for position, (cost, arm) in enumerate(zip(costs, arms.values(), strict=True)):
        near = {"textcoords": "offset points", "va": "center", "fontsize": 9}
        axes.annotate(f"${cost:.3g}", (cost, position), (6, 0), **near)
        for column, key in enumerate(("break_even_requests", "break_even_requests_vs_cached")):
            place = {"xycoords": ("axes fraction", "data"), "annotation_clip": False, "ha": "right"}
            axes.annotate(_requests(arm, key), (1, position), (COLUMNS[column], 0), **place, **near)
    for column, reference in zip(COLUMNS, ("full", "cached"), strict=True):
        place = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "right"}
        axes.annotate(f"pays after,\nvs {reference}", (1, 1), (column, 4), fontsize=9, **place)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.18 * max(costs))
    prices = summary["prices"]
    axes.set_xlabel(
        f"USD per 1,000 requests ({prices['name']}: {prices['input']:g} / "
        f"{prices['cached_input']:g} / {prices['output']:g} {prices['unit']})"
    )
    axes.set_title("Cost, and the requests that pay for the training", pad=24)
    save(figure, path)


def _requests(arm: dict, key: str) -> str:
    if not arm["training_seconds"]:
        return "–"
    return pays_after(arm[key])


def _kind(arm: dict) -> str:
    return "trained" if arm["training_seconds"] else "prompt only"


def _mark(arm: dict) -> tuple[str, str]:
    return (GREEN, "o") if arm["training_seconds"] else (PURPLE, "s")


def _smooth(values: Sequence[float]) -> Iterator[float]:
    """Exponential average, corrected for its start."""
    average = weight = 0.0
    newest = min(1.0, 1 / (SMOOTHED_FRACTION * len(values)))
    for value in values:
        average += newest * (value - average)
        weight += newest * (1 - weight)
        yield average / weight
