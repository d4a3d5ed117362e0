"""The page of welds in a real browser: charts and timelines draw, nothing is asked for, it fits a telephone and can be read by everyone."""

import pytest

from stages import io
from tests.class_project import judged
from tests.plots.test_browser import CHROMIUM, browser, opened  # noqa: F401  (browser is a fixture)
from tests.serving.test_record_timeline import write_log, write_sound
from tests.stored_records import work

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: install it, or set CHROMIUM to its path")]


@pytest.fixture(scope="module")
def page_of_welds(tmp_path_factory):
    from PIL import Image

    folder = judged(tmp_path_factory.mktemp("welds"), 90)
    media = folder / "data/weld/media"
    (media / "images").mkdir(parents=True)
    write_log(media / "log.csv", 1.0)
    write_sound(media / "sound.wav", 2.0)
    Image.new("RGB", (60, 40), (90, 10, 10)).save(media / "images/0.jpg")
    rows = [{**row, "series_path": "log.csv", "audio_path": "sound.wav", "image_path": "images"} for row in io.read_table(folder / "data/weld/samples.parquet")]
    io.write_table(folder / "data/weld/samples.parquet", {name: [row[name] for row in rows] for name in rows[0]})
    curve = [f"0,network,{step},{step},{1 / (step + 1)},{0.5 + abs(step - 1) / 9},0.{step},0.5" for step in range(9)]
    header = "seed,training,step,epoch,train_loss,val_loss,train_accuracy,val_accuracy"
    io.write_text(folder / "metrics/weld/telling/cross-attention/learning.csv", "\n".join([header, *curve]) + "\n")
    work(folder, ("report",))
    return folder / "metrics/report/index.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_charts_and_timelines_draw_nothing_is_asked_for_and_axe_has_no_serious_complaint(browser, page_of_welds, scheme):  # noqa: F811
    from axe_playwright_python.sync_playwright import Axe

    page, complaints = opened(browser, page_of_welds, scheme=scheme)
    assert complaints == [] and page.locator(".timeline polyline").count() >= 4
    for chart in ("confusion", "by_class", "learning loss", "learning accuracy"):
        assert page.locator(f'[data-chart="{chart}"] svg path').count() > 0, chart
    assert "cross-attention over-fits" in page.content()
    page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true })")
    found = Axe().run(page).response["violations"]
    assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []


def test_a_telephone_never_scrolls_sideways(browser, page_of_welds):  # noqa: F811
    page, _ = opened(browser, page_of_welds, width=390)
    page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
