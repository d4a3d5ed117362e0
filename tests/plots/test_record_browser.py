"""The section of records in a real browser: it draws, it asks for nothing, it fits a telephone, it can be read by everyone."""

import pytest

from stages import report
from tests.plots.test_browser import CHROMIUM, browser, opened  # noqa: F401  (browser is a fixture)
from tests.record_results import finished

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: install it, or set CHROMIUM to its path")]


@pytest.fixture(scope="module")
def page_of_records(tmp_path_factory):
    folder = finished(tmp_path_factory.mktemp("records"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        report.main()
    return folder / "metrics/report/index.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_plot_has_marks_nothing_is_asked_for_and_axe_has_no_serious_complaint(browser, page_of_records, scheme):  # noqa: F811
    from axe_playwright_python.sync_playwright import Axe

    page, complaints = opened(browser, page_of_records, scheme=scheme)
    assert complaints == [] and page.locator(".chart").count() == 11
    found = Axe().run(page).response["violations"]
    assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []


def test_a_telephone_never_scrolls_sideways_and_no_chart_is_wider_than_its_place(browser, page_of_records):  # noqa: F811
    page, _ = opened(browser, page_of_records, width=390)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    wide = "[...document.querySelectorAll('.chart')].filter(chart => chart.scrollWidth > chart.clientWidth + 1).map(chart => chart.dataset.chart)"
    assert page.evaluate(wide) == []
