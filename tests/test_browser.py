"""The pages in a real browser of a phone's size: drawn, without errors, and their filters work."""

import io
import shutil

import numpy as np
import pytest

from pintern.report import study_plots as plots
from pintern.report.study_page import Part, write_study_page

PHONE = (390, 844)
DESKTOP = (1280, 900)
ARMS = ("base, full prompt and two retrieved examples", "direct fine-tuning", "PromptIntern")
# Right (1) or wrong of each arm, by example.
VERDICTS = ("111", "110", "010", "000", "011", "001", "111")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

chromium = shutil.which("chromium") or shutil.which("chromium-browser")
driver_path = shutil.which("chromedriver")
if not chromium or not driver_path:
    missing = "chromium" if not chromium else "chromedriver"
    pytest.skip(f"{missing} is not on PATH: the page isn't opened", allow_module_level=True)
webdriver = pytest.importorskip("selenium.webdriver", reason="selenium (extra `test`) is missing")


def _predictions():
    return {
        arm: [
            {
                "query": f"how many rentals are there with grade deluxe, number {number}?",
                "gold": "SELECT COUNT ( * ) FROM tig WHERE sev = 'deluxe' " + "AND x = 1 " * 20,
                "prediction": "SELECT" + "_unbroken" * 40 + "<script>window.broken = 1</script>",
                "score": 100.0 * int(verdicts[place]),
                "slice": ("seen", "unseen")[number % 2],
            }
            for number, verdicts in enumerate(VERDICTS)
        ]
        for place, arm in enumerate(ARMS)
    }


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A study's page with every kind of part."""
    folder = tmp_path_factory.mktemp("page")
    paths = {}

    def path(name):
        paths[name] = folder / f"{name}.png"
        return paths[name]

    points = [
        plots.Point(arm, 0.2 * (i + 1), 40.0 + 10 * i, (35.0 + 10 * i, 45.0 + 10 * i), i > 0)
        for i, arm in enumerate(ARMS)
    ]
    plots.plot_pareto(points, "sql", path("pareto"))
    plots.plot_spread({arm: [40.0, 50.0, 45.0, 41.0, 60.0] for arm in ARMS}, "sql", path("spread"))
    course = [plots.Stretch(0, 50, 1.0, 2), plots.Stretch(50, 100, 0.0, 0)]
    plots.plot_timeline({arm: course for arm in ARMS}, path("timeline"))
    matrix = {"amber": {"amber": 90.0, "birch": 10.0}, "birch": {"amber": 5.0, "birch": 80.0}}
    plots.plot_heat_map({"PT": matrix, "IPT": matrix, "ICL": matrix}, "sql", path("transfer"))
    lines = {"linear": [(2.0, 40.0, 1.0), (4.0, 60.0, 2.0)], "cosine": [(2.0, 41.0, None)]}
    plots.plot_lines(lines, path("lines"), x="stages", y="score", title="t", levels={"full": 70.0})
    part = Part(
        title="company, nano (sql)",
        head=["arm", "score", *(f"column {i}" for i in range(14))],
        rows=[[arm, f"{40 + i}.0{'*' * (i == 2)}", *["12.3"] * 14] for i, arm in enumerate(ARMS)],
        notes=["A note."],
        pictures={name: paths[name] for name in ("pareto", "spread", "timeline", "lines")},
        ladder=[
            {"asked": rate, "got": rate, "tokens": 100, "text": "Rules of the house. " * 40}
            for rate in (1.0, 0.66, 0.33, 0.0)
        ],
        predictions=_predictions(),
    )
    write_study_page(
        folder / "index.html",
        name="a study",
        question="Does it fit a phone?",
        warnings=["2 of 9 cells are not finished."],
        parts=[part],
        legend="\\* best score.",
        across={"All tasks": (["arm", "mean"], [["ours", "1.0"]], "Over seeds.")},
        papers={"a paper": (["as published", "MBPP"], [["ours", "78.1"]], "Another setting.")},
        notes=["Reduced."],
        pictures={"transfer": paths["transfer"]},
        config={"task": {"template": "x" * 300}},
        changes={arm: ["curriculum.stages: 4 → 8"] * 5 for arm in ARMS},
        command="python -m pintern.study --study=" + "y" * 200,
        versions={"jax": "0"},
    )
    return folder / "index.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options, webdriver.ChromeService(driver_path))
    yield started
    started.quit()


@pytest.fixture(params=[PHONE, DESKTOP], ids=["phone", "desktop"])
def opened(request, browser, page):
    """The page, freshly loaded in a window of this size."""
    width, height = request.param
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get_log("browser")
    browser.get(page.as_uri())
    return browser, width


def test_the_page_is_drawn_without_an_error_or_a_request(opened):
    from matplotlib.image import imread

    browser, width = opened
    pixels = imread(io.BytesIO(browser.get_screenshot_as_png()))[..., :3]
    assert pixels.shape[1] == width
    assert np.var(pixels) > 1e-3
    assert browser.get_log("browser") == []
    loaded = browser.execute_script(
        "return performance.getEntriesByType('resource').map(entry => entry.name)"
    )
    assert [name for name in loaded if not name.startswith("data:")] == []
    widths = browser.execute_script(
        "return [...document.images].map(image => image.complete ? image.naturalWidth : 0)"
    )
    assert len(widths) == 5 and min(widths) > 300
    assert browser.execute_script("return window.broken") is None


def test_nothing_is_wider_than_the_window(opened):
    browser, width = opened
    overflow = "return document.documentElement.scrollWidth"
    assert browser.execute_script(overflow) <= width
    browser.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert browser.execute_script(overflow) <= width
    # A name that scrolls along leaves room for what scrolls beside it.
    cells = "return [...document.querySelectorAll('td:first-child')].map(c => c.offsetWidth)"
    assert max(browser.execute_script(cells)) <= 0.6 * width
    # Text stays readable: no font below 11 pixels.
    smallest = browser.execute_script(
        "return Math.min(...[...document.querySelectorAll('td, p, pre, summary, small, button')]"
        ".map(node => parseFloat(getComputedStyle(node).fontSize)))"
    )
    assert smallest >= 11


@pytest.mark.parametrize(
    ("show", "arm", "fits"),
    [
        ("all", None, lambda v: True),
        ("wrong", None, lambda v: "0" in v),
        ("right", None, lambda v: "0" not in v),
        ("disagree", None, lambda v: len(set(v)) == 2),
        ("wrong", 1, lambda v: v[1] == "0"),
        ("right", 0, lambda v: v[0] == "1"),
    ],
)
def test_filters_leave_the_examples_that_fit(opened, show, arm, fits):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    browser, _ = opened
    button = browser.find_element(By.CSS_SELECTOR, f"button[data-show={show}]")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
    button.click()
    if arm is not None:
        Select(browser.find_element(By.CSS_SELECTOR, "select.arm")).select_by_visible_text(
            ARMS[arm]
        )
    examples = browser.find_elements(By.CSS_SELECTOR, ".example")
    shown = [number for number, example in enumerate(examples) if example.is_displayed()]
    wanted = [number for number, verdicts in enumerate(VERDICTS) if fits(verdicts)]
    assert shown == wanted
    count = browser.find_element(By.CSS_SELECTOR, ".count").text
    assert count == f"{len(wanted)} shown"
    Select(browser.find_element(By.CSS_SELECTOR, "select.slice")).select_by_visible_text("unseen")
    shown = [number for number, example in enumerate(examples) if example.is_displayed()]
    assert shown == [number for number in wanted if number % 2]


def test_an_example_unfolds_to_every_arms_answer(opened):
    from selenium.webdriver.common.by import By

    browser, _ = opened
    example = browser.find_element(By.CSS_SELECTOR, ".example")
    summary = example.find_element(By.TAG_NAME, "summary")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", summary)
    assert not example.find_element(By.TAG_NAME, "table").is_displayed()
    summary.click()
    text = example.find_element(By.TAG_NAME, "table").text
    assert all(arm in text for arm in ARMS) and "gold" in text
