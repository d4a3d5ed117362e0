"""The report in a real browser: it draws, it asks for nothing, its numbers move, it fits a telephone, it can be read by everyone."""

import importlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from stages import io
from stages.metrics.confusion import confusion
from tests.projects import tiny_project
from tests.signals import signal_project

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: install it, or set CHROMIUM to its path")]
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
HOSTILE = "<script>alert(1)<"  # part of a name, where the file system allows it


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The page of a project whose good photos all have hostile names."""
    folder = tiny_project(tmp_path_factory.mktemp("project"))
    for photo in sorted(folder.glob("photos/*/good/*.png")):
        photo.rename(photo.with_name(f"{HOSTILE}{photo.name}"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for verb, *arguments in (
            ["prepare", "tiny"], ["extract", "tiny", "pixels"], ["extract", "tiny", "net"], ["manifest", "tiny"],
            ["train", "tiny-patchcore"], ["train", "tiny-trivial"], ["evaluate", "tiny-patchcore"], ["evaluate", "tiny-trivial"],
            ["bench", "tiny"], ["report"],
        ):  # fmt: skip
            assert not importlib.import_module(f"stages.{verb}").main(*arguments), verb
    return folder / "metrics/report/index.html"


@pytest.fixture(scope="module")
def signals(tmp_path_factory):
    """The page of a project of signals."""
    folder = signal_project(tmp_path_factory.mktemp("signals"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for verb, *arguments in (
            ["prepare_series", "pump"], ["manifest_series", "pump"], ["train_series", "pump-classical"], ["evaluate_series", "pump-classical"],
            ["report"],
        ):  # fmt: skip
            assert not importlib.import_module(f"stages.{verb}").main(*arguments), verb
    return folder / "metrics/report/index.html"


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


def opened(browser, report: Path, width: int = 1200, scheme: str = "light"):
    """The page once all is drawn, and what it complained of or asked for."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    complaints = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url) if not request.url.startswith(("data:", report.as_uri())) else None)
    page.goto(report.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    page.wait_for_function(
        "[...document.querySelectorAll('.chart')].every(chart => chart.querySelector('svg .mark-group path, svg .mark-rect path'))"
    )
    return page, complaints


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_plot_has_marks_and_nothing_is_asked_for_or_complained_of(browser, report, scheme):
    page, complaints = opened(browser, report, scheme=scheme)
    assert complaints == []
    assert page.locator(".chart").count() == 4 and report.stat().st_size < 4e6


def test_the_explorer_says_what_a_confusion_matrix_says_wherever_the_slider_stands(browser, report):
    page, _ = opened(browser, report)
    rows = [
        row
        for row in io.read_table(report.parents[1] / "tiny/trivial/mean-image/predictions.parquet")
        if row["split"] == "test" and row["seed"] == 0
    ]
    score, label = np.array([row["image_score"] for row in rows]), np.array([row["label"] for row in rows])
    seen = set()
    for place in (2, 6, 500, 996):
        page.locator(".slider").fill(str(place))
        threshold = float(page.locator(".slider").get_attribute("data-threshold"))
        shown = tuple(int(page.locator(f'[data-value="{name}"]').inner_text()) for name in ("tp", "fn", "tn", "fp"))
        assert shown == tuple(confusion(score, label, threshold))
        seen.add(shown)
    assert len(seen) >= 3


def test_a_hostile_file_name_is_text(browser, report):
    page, complaints = opened(browser, report)
    assert complaints == [] and page.evaluate("document.querySelectorAll('script').length") == 3
    assert HOSTILE in page.locator(".suspicious").inner_text()  # put there by the script; captions are jinja's and tested with it


def test_a_telephone_shows_the_verdict_first_and_never_scrolls_sideways(browser, report):
    page, _ = opened(browser, report, width=390)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    verdict = page.locator(".verdict").first.bounding_box()
    assert verdict["y"] + verdict["height"] < 900 and "Take" in page.locator(".verdict strong").first.inner_text()


def test_signals_draw_as_quietly_and_each_plot_has_its_words(browser, signals):
    page, complaints = opened(browser, signals)
    assert complaints == []
    said = page.locator(".chart").evaluate_all("charts => charts.map(chart => [chart.getAttribute('role'), chart.getAttribute('aria-label')])")
    assert len(said) >= 10 and {role for role, _ in said} == {"img"} and "Vega visualization" not in {words for _, words in said}


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
@pytest.mark.parametrize("of", ["report", "signals"])
def test_no_barrier_that_axe_calls_serious(browser, request, of, width, scheme):
    from axe_playwright_python.sync_playwright import Axe

    page, _ = opened(browser, request.getfixturevalue(of), width, scheme)
    found = Axe().run(page).response["violations"]
    assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []
