"""What all plots share: colours, figures, labels that don't overlap.

Colours are Okabe and Ito's, told apart by colour-blind readers. Figures are made without pyplot: no
window, no global state.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#56B4E9",
    "#CC79A7",
    "#6B6B6B",
)
DPI = 130
# Where a label may go, in points from its mark: beside it, above, below, then further away.
LABEL_OFFSETS = [
    (dx, dy) for dy in (0, 11, -11, 22, -22, 33, -33, 46, -46, 60, -60) for dx in (9, -9)
]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")


def figure_of(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure with one pair of axes."""
    figure = new_figure(width, height)
    axes = figure.subplots()
    tidy(axes)
    return figure, axes


def tidy(*many: Axes) -> None:
    """No frame on top and right, a faint grid."""
    for axes in many:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)


def place_labels(figure: Figure, axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Writes each name at the first place where it meets no mark, no label and no edge."""
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    halo = [withStroke(linewidth=3, foreground="white")]  # lines may pass behind a name
    _as_written(figure)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    frame = axes.get_window_extent()
    legend = axes.get_legend()
    taken = [legend.get_window_extent()] if legend else []
    for x, y, _ in points:
        px, py = axes.transData.transform((x, y))
        taken.append(Bbox.from_extents(px - 7, py - 7, px + 7, py + 7))
    for x, y, name in points:
        near = {"textcoords": "offset points", "va": "center", "fontsize": 9, "path_effects": halo}
        label = axes.annotate(name, (x, y), (0, 0), parse_math=False, **near)
        for dx, dy in LABEL_OFFSETS:
            label.set_position((dx, dy))
            label.set_horizontalalignment("left" if dx > 0 else "right")
            box = label.get_window_extent()
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1
            if inside and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
        if dy:
            leader = {"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 0}
            axes.annotate("", (x, y), (dx, dy), textcoords="offset points", arrowprops=leader)


def _as_written(figure: Figure) -> None:
    """No name is taken for mathematics: two dollars in one are dollars."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)


def save(figure: Figure, path: Path | str) -> None:
    """Writes a PNG; makes its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _as_written(figure)
    figure.savefig(path, format="png")
