"""The page is one file, asks for nothing, and shows hostile names as text."""

from stages.plots import page
from stages.serving.leaderboard import COLUMNS, Row, cell


def rendered(name: str = "parts") -> str:
    row = Row(1, name, "patchcore", "quick", "random", {"image_auroc": {"value": 0.9, "low": 0.8, "high": 0.95}}, 12.3, None)
    refused = row._replace(rank=None, model="stfpm", metrics={}, refused="E101 no weights")
    section = {
        "name": name, "rows": [row, refused], "columns": {"image_auroc": COLUMNS["image_auroc"]}, "categories": 1, "verdict": "v", "note": "",
        "warnings": [f"{name} is broken"], "best": [], "shifts": [],
    }  # fmt: skip
    return page.render("Assay", [section], cell)


def test_the_figures_and_the_reason_of_a_refusal_are_on_the_page():
    text = rendered()
    assert ".900 [.800, .950]" in text and "E101 no weights" in text and "quick" in text and "RANDOM WEIGHTS" in text


def test_a_hostile_name_is_text():
    text = rendered("<script>alert(1)</script>")
    assert "<script" not in text and "&lt;script&gt;" in text


def test_the_page_requests_nothing():
    text = rendered()
    assert "http://" not in text and "https://" not in text and "default-src 'none'" in text
