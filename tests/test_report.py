"""The report's table, plots and page."""

import io
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from pintern.errors import UserError
from pintern.report import plots, study_plots
from pintern.report.accounting import ArmResult, Latency, PriceList, TokenCount, summarise
from pintern.report.html import write_html
from pintern.report.pieces import MAX_EXAMPLES
from pintern.report.table import print_table, render_table

HOSTILE = "<script>alert('1')</script>"
SCORES = {
    "zero-shot": 3.0,
    "ICL": 71.0,
    "ICL, cached": 71.0,
    "PromptIntern": 86.0,
    "a|b & <c>": 60.0,
}


@pytest.fixture
def summary():
    arms = []
    for name, score in SCORES.items():
        prompted = name.startswith("ICL")
        prefill = {"ICL": 0.09, "ICL, cached": 0.03}.get(name, 0.004)
        arms.append(
            ArmResult(
                arm=name,
                score=score,
                slices={"joins": score - 1} | ({"plain": score + 1} if prompted else {}),
                interval=(score - 2, score + 2) if prompted else None,
                tokens=TokenCount(448 * prompted, 160 * prompted, 21, 18),
                latency=Latency(prefill, prefill, 0.03, 0.04, prefill + 0.03, prefill + 0.04),
                cached_prefix=name == "ICL, cached",
                training_seconds=1200.0 * (name == "PromptIntern"),
                metric="sql",
                trained="LoRA" if name == "PromptIntern" else "–",
            )
        )
    return summarise(
        arms,
        full="ICL",
        cached="ICL, cached",
        prices=PriceList(),
        usd_per_hour=1.2,
        ours="PromptIntern",
    )


@pytest.fixture
def curriculum():
    rows = [
        {
            "step": step,
            "loss": math.exp(-step / 100),
            "prompt_tokens": 600 - 6 * step,
            "keep_rate": 1 - step / 100,
            "shots": 4 - step // 25,
        }
        for step in range(100)
    ]
    return [*rows, {"step": 100, "score": 3.0}]


class Page(HTMLParser):
    """Checks that tags nest, and gathers what matters of them."""

    VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag, name=None):
        return [attrs for other, attrs in self.tags if other == tag and (not name or name in attrs)]


@pytest.fixture
def make_page(summary, tmp_path):
    def make(**changes):
        plots.plot_latency(summary, tmp_path / "latency.png")
        right = {"query": HOSTILE, "gold": "SELECT 1", "prediction": "SELECT 1"}
        arguments = {
            "ladder": [
                {"asked": 1.0, "got": 1.0, "tokens": 448, "text": f"Rules: {HOSTILE}"},
                {"asked": 0.0, "got": 0.0, "tokens": 0, "text": ""},
            ],
            "predictions": {
                "ICL": [right | {"score": 100.0, "slice": HOSTILE}] * 2,
                "PromptIntern": [
                    right | {"score": 100.0, "slice": HOSTILE},
                    right | {"score": 0.0, "slice": HOSTILE, "prediction": HOSTILE + "\ud800"},
                ],
            },
            "config": {"note": HOSTILE},
            "plots": {f"Latency {HOSTILE}": tmp_path / "latency.png"},
            "command": f"python -m pintern.train {HOSTILE}",
            "versions": {"jax": HOSTILE},
        }
        path = tmp_path / "index.html"
        write_html(path, summary, **(arguments | changes))
        return path.read_text(encoding="utf-8")

    return make


def test_table_has_every_arm_in_aligned_columns(summary):
    lines = render_table(summary).split("\n")
    rows = lines[2 : 2 + len(SCORES)]
    assert [row[: row.index("  ")].strip() for row in rows] == list(SCORES)
    ends = [[match.end() for match in re.finditer(r"\S+ ?%", row)][-1] for row in rows]
    assert len(set(ends)) == 1
    assert sum("*" in row for row in rows) == 1
    assert "86.0*" in rows[list(SCORES).index("PromptIntern")]
    assert "–" in rows[0]


def test_footer_names_prices_and_sets_the_claims_beside_ours(summary):
    line = render_table(summary).split("\n")[-1]
    for part in ("0.30", "15.00", "assumed", "90 %", "4.2×", "88.3 %", "PromptIntern here: 97 %"):
        assert part in line
    assert "here" not in render_table(summary | {"ours": None})


def test_markdown_has_as_many_cells_in_every_row(summary):
    lines = [line for line in render_table(summary, markdown=True).split("\n") if line[:1] == "|"]
    counts = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
    assert len(lines) == 2 + len(SCORES)
    assert len(counts) == 1


@pytest.mark.parametrize("width", [60, 100, 300])
def test_terminal_table_never_cuts_a_cell(summary, width):
    from rich.console import Console

    stream = io.StringIO()
    print_table(summary, Console(file=stream, width=width))
    text = stream.getvalue()
    assert "…" not in text
    assert max(map(len, text.split("\n"))) <= width
    for part in (*SCORES, "86.0*", "cost $/1k requests", "prompt tokens"):
        assert part in text


@pytest.mark.parametrize("kind", ["score_against_tokens", "latency", "cost"])
def test_summary_plots_are_drawn(summary, tmp_path, kind):
    path = tmp_path / "deep" / f"{kind}.png"
    getattr(plots, f"plot_{kind}")(summary, path)
    assert_drawn(path)


def test_curriculum_plot_is_drawn_without_evaluation_rows(curriculum, tmp_path):
    plots.plot_curriculum(curriculum, tmp_path / "curriculum.png")
    assert_drawn(tmp_path / "curriculum.png")
    plots.plot_curriculum(curriculum[:1], tmp_path / "one.png")
    assert_drawn(tmp_path / "one.png")
    with pytest.raises(UserError, match="keep_rate"):
        plots.plot_curriculum(curriculum[-1:], tmp_path / "none.png")


def test_a_single_arm_can_be_plotted(summary, tmp_path):
    one = summary | {"arms": {"ICL": summary["arms"]["ICL"]}}
    for kind in ("score_against_tokens", "latency", "cost"):
        getattr(plots, f"plot_{kind}")(one, tmp_path / "one.png")
        assert_drawn(tmp_path / "one.png")


def test_names_with_dollars_are_drawn_as_they_are(summary, tmp_path):
    name = r"$\nothing$ in it"
    one = summary | {"arms": {name: summary["arms"]["ICL"]}}
    for kind in ("score_against_tokens", "latency", "cost"):
        getattr(plots, f"plot_{kind}")(one, tmp_path / "one.png")
        assert_drawn(tmp_path / "one.png")
    points = [study_plots.Point(name, 0.2, 50.0, (40.0, 60.0), trained=True)]
    study_plots.plot_pareto(points, "sql", tmp_path / "pareto.png")
    study_plots.plot_spread({name: [40.0, 50.0]}, "sql", tmp_path / "spread.png")
    lines = {name: [(2.0, 40.0, 1.0), (4.0, 60.0, 2.0)]}
    study_plots.plot_lines(lines, tmp_path / "lines.png", x=name, y=name, title=name)
    for kind in ("pareto", "spread", "lines"):
        assert_drawn(tmp_path / f"{kind}.png")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("costs", [(0.0, 0.0), (0.0, 2.0)])
def test_arms_that_cost_nothing_are_drawn_too(costs, monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(study_plots, "save", lambda figure, path: figures.append(figure))
    points = [
        study_plots.Point(f"arm {i}", cost, 50.0 + i, None, False) for i, cost in enumerate(costs)
    ]
    study_plots.plot_pareto(points, "sql", tmp_path / "unused.png")
    (axes,) = figures[0].axes
    low, high = axes.get_xlim()
    assert axes.get_xscale() == "linear"
    assert low < min(costs) <= max(costs) < high


def assert_drawn(path):
    from matplotlib.image import imread

    pixels = imread(path)[..., :3]
    assert min(pixels.shape[:2]) >= 150
    assert np.var(pixels) > 1e-3
    # Coloured marks, not only black text: somewhere the channels differ.
    assert (np.ptp(pixels, axis=-1) > 0.3).mean() > 1e-4


def test_labels_of_close_points_do_not_overlap(summary, monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))
    plots.plot_score_against_tokens(summary, tmp_path / "unused.png")
    boxes = [
        text.get_window_extent() for text in figures[0].axes[0].texts if text.get_text() in SCORES
    ]
    assert len(boxes) == len(SCORES)
    for index, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:index])


def test_smoothed_loss_starts_at_the_loss_and_keeps_a_constant():
    assert list(plots._smooth([2.0] * 500)) == pytest.approx([2.0] * 500)
    assert list(plots._smooth([5.0])) == [5.0]


def test_page_nests_and_escapes_everything(make_page):
    page = Page(make_page())
    assert page.open == []
    assert len(page.all("script")) == 1
    assert page.text.count(HOSTILE) >= 9
    assert "<c>" in page.text and not page.all("c")


def test_page_needs_nothing_else(make_page):
    text = make_page()
    page = Page(text)
    assert "http://" not in text and "https://" not in text
    assert not page.all("link") and not page.all("iframe") and not page.all("script", "src")
    assert [attrs["src"][:22] for attrs in page.all("img")] == ["data:image/png;base64,"]
    assert any(attrs.get("name") == "viewport" for attrs in page.all("meta"))
    assert "prefers-color-scheme" in text


def test_page_tells_examples_apart(make_page):
    examples = [
        attrs for attrs in Page(make_page()).all("details") if attrs.get("class") == "example"
    ]
    assert [attrs["data-right"] for attrs in examples] == ["11", "10"]
    assert {attrs["data-slice"] for attrs in examples} == {HOSTILE}


def test_page_says_how_many_examples_it_shows(make_page):
    answer = {"query": "q", "gold": "g", "prediction": "p", "score": 0.0, "slice": "s"}
    page = Page(make_page(predictions={"ICL": [answer] * (MAX_EXAMPLES + 7)}))
    assert f"{MAX_EXAMPLES} of {MAX_EXAMPLES + 7} examples" in page.text
    assert len([a for a in page.all("details") if a.get("class") == "example"]) == MAX_EXAMPLES


def test_page_without_parts_still_nests(make_page):
    page = Page(make_page(ladder=[], predictions={}, plots={}))
    assert page.open == [] and not page.all("script") and not page.all("img")


def test_arms_over_different_examples_are_refused(make_page):
    answer = {"query": "q", "gold": "g", "prediction": "p", "score": 0.0, "slice": "s"}
    with pytest.raises(UserError, match="'ICL' and 'zero-shot'"):
        make_page(predictions={"ICL": [answer], "zero-shot": [answer | {"query": "r"}]})


def test_a_missing_plot_is_named(make_page, tmp_path):
    with pytest.raises(UserError, match="Cost"):
        make_page(plots={"Cost": tmp_path / "none.png"})
