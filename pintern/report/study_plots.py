"""A study's results as PNGs. Plain numbers come in; nothing here knows a ledger or a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

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

COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, GREY)
STYLES = ("-", "--", "-.", ":")
MARKERS = "osD^vPX*"
# With more arms than this only the frontier is named in the Pareto plot.
MAX_LABELS = 14
BOX_FROM = 5  # seeds; below that a box would show what isn't known


class Point(NamedTuple):
    """One arm in the Pareto plot: USD per 1,000 requests, score, its bounds if there are any,
    whether it trains."""

    name: str
    cost: float
    score: float
    interval: tuple[float, float] | None
    trained: bool


class Stretch(NamedTuple):
    """Steps `start` ≤ step < `stop` of a training at one level."""

    start: int
    stop: int
    keep_rate: float
    shots: int


Series = Mapping[str, Sequence[tuple[float, float, float | None]]]
"""Line to its points: x, y, and y's spread over seeds where there is one."""


def plot_pareto(points: Sequence[Point], metric: str, path: Path | str) -> None:
    """Score against cost per request; a line joins the arms that none beats in both."""
    figure, axes = figure_of(8, 5.2)
    best = pareto_front(points)
    for point in points:
        colour, marker = (GREEN, "o") if point.trained else (PURPLE, "s")
        if point.interval is not None:
            axes.plot([point.cost] * 2, point.interval, "_-", color=colour, alpha=0.5, markersize=7)
        axes.plot(
            point.cost, point.score, marker, color=colour, markersize=8, markeredgecolor="white"
        )
    axes.step(
        [p.cost for p in best], [p.score for p in best], where="post", color=GREY, linewidth=1
    )
    costs = [point.cost for point in points]
    axes.set_xlabel("USD per 1,000 requests")
    if min(costs) > 0:  # prices may be set to nothing
        axes.set_xscale("log")
        axes.set_xlim(min(costs) / 1.8, max(costs) * 1.8)
        ticks = [b * 10.0**e for e in range(-6, 6) for b in (1, 2, 5)]
        ticks = [tick for tick in ticks if min(costs) / 1.8 <= tick <= max(costs) * 1.8]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("USD per 1,000 requests (logarithmic)")
    axes.margins(y=0.12)
    axes.set_ylabel(f"score ({metric}, 0–100)")
    axes.set_title("Score against cost: what no other arm beats in both is joined")
    for (colour, marker), label in (((GREEN, "o"), "trained"), ((PURPLE, "s"), "prompt only")):
        axes.plot([], [], marker, color=colour, label=label)
    axes.legend(loc="best", frameon=False, fontsize=9)
    named = points if len(points) <= MAX_LABELS else best
    place_labels(figure, axes, [(p.cost, p.score, p.name) for p in named])
    save(figure, path)


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """Arms than which none is cheaper and at least as good, or as cheap and better."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, -p.score)):
        if not front or point.score > front[-1].score:
            front.append(point)
    return front


def plot_spread(scores: Mapping[str, Sequence[float]], metric: str, path: Path | str) -> None:
    """Every seed's score of every arm, and a box where there are five seeds or more."""
    figure, axes = figure_of(8, 1.2 + 0.36 * len(scores))
    for place, values in enumerate(scores.values()):
        if len(values) >= BOX_FROM:
            axes.boxplot(
                [list(values)],
                positions=[place],
                orientation="horizontal",
                widths=0.55,
                showfliers=False,
                medianprops={"color": VERMILION},
            )
        axes.plot([np.mean(values)], [place], "|", color=VERMILION, markersize=16)
        offsets = np.linspace(-0.14, 0.14, len(values)) if len(values) > 1 else [0]
        axes.plot(values, place + np.asarray(offsets), "o", color=BLUE, markersize=5, alpha=0.7)
    axes.set_yticks(range(len(scores)), list(scores))
    axes.set_ylim(len(scores) - 0.5, -0.5)
    axes.set_xlabel(f"score ({metric}); a dot is a seed, | the mean")
    axes.set_title("Spread over seeds")
    save(figure, path)


def plot_timeline(courses: Mapping[str, Sequence[Stretch]], path: Path | str) -> None:
    """How each arm's prompt goes: a bar over the steps, dark where the template is whole."""
    from matplotlib.colors import LinearSegmentedColormap

    shade = LinearSegmentedColormap.from_list("keep", ["#F2F4F6", SKY, BLUE])
    figure, axes = figure_of(8, 1.3 + 0.36 * len(courses))
    for place, stretches in enumerate(courses.values()):
        for part in stretches:
            width = part.stop - part.start
            axes.barh(
                place,
                width,
                left=part.start,
                height=0.8,
                color=shade(part.keep_rate),
                edgecolor="white",
                linewidth=0.8,
            )
            if width >= 0.06 * max(s.stop for c in courses.values() for s in c):
                axes.text(
                    part.start + width / 2,
                    place,
                    f"{part.keep_rate:.2g}/{part.shots}",
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    color="white" if part.keep_rate > 0.6 else "black",
                )
    axes.set_yticks(range(len(courses)), list(courses))
    axes.set_ylim(len(courses) - 0.5, -0.5)
    axes.grid(visible=False)
    axes.set_xlabel("optimizer step")
    axes.set_title("The prompt in training: τ of the template / examples")
    save(figure, path)


def plot_heat_map(
    panels: Mapping[str, Mapping[str, Mapping[str, float]]], metric: str, path: Path | str
) -> None:
    """One matrix per arm: trained on the row's task, scored on the column's.

    Args:
      panels: arm to source to target to score.
      metric: for the title.
      path: PNG to write.
    """
    targets = list(dict.fromkeys(t for p in panels.values() for row in p.values() for t in row))
    sources = max(len(panel) for panel in panels.values())
    columns = min(len(panels), 2)
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(columns * (2.2 + 0.75 * len(targets)), rows * (1.6 + 0.45 * sources))
    grid = figure.subplots(rows, columns, squeeze=False)
    values = [v for p in panels.values() for row in p.values() for v in row.values()]
    low, high = min(values), max(values)
    image = None
    for axes in grid.flat[len(panels) :]:
        axes.axis("off")
    for axes, (arm, panel) in zip(grid.flat, panels.items(), strict=False):
        matrix = np.array([[row.get(t, np.nan) for t in targets] for row in panel.values()])
        image = axes.imshow(matrix, cmap="cividis", vmin=low, vmax=high or 1, aspect="auto")
        for (i, j), value in np.ndenumerate(matrix):
            if np.isnan(value):
                continue
            dark = value < (low + high) / 2
            axes.text(
                j, i, f"{value:.1f}", ha="center", va="center", color="white" if dark else "black"
            )
        axes.set_xticks(range(len(targets)), targets, rotation=30, ha="right")
        axes.set_yticks(range(len(panel)), list(panel))
        axes.set_xlabel("scored on")
        axes.set_ylabel("trained on")
        axes.set_title(arm, fontsize=10)
    figure.colorbar(image, ax=grid, shrink=0.8, label=f"score ({metric})")
    save(figure, path)


def plot_lines(
    series: Series,
    path: Path | str,
    *,
    x: str,
    y: str,
    title: str,
    levels: Mapping[str, float] | None = None,
) -> None:
    """Lines over numbers or names, with spread over seeds; `levels` are drawn right across."""
    figure, axes = figure_of(8, 4.8)
    for index, (name, points) in enumerate(series.items()):
        xs, ys, spread = zip(*sorted(points, key=lambda p: p[0]), strict=True)
        colour = COLOURS[index % len(COLOURS)]
        axes.errorbar(
            xs,
            ys,
            yerr=[s or 0 for s in spread] if any(spread) else None,
            fmt=MARKERS[index % len(MARKERS)] + STYLES[(index // len(COLOURS)) % len(STYLES)],
            color=colour,
            capsize=3,
            markersize=6,
            label=name,
        )
    for name, value in (levels or {}).items():
        axes.axhline(value, color=GREY, linewidth=1, linestyle=":")
        axes.annotate(
            name,
            (1, value),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            fontsize=8,
            color=GREY,
        )
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title)
    if any(series):
        axes.legend(frameon=False, fontsize=8, ncols=1 + (len(series) > 8))
    tidy(axes)
    save(figure, path)
