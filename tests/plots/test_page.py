"""The page is one file, asks for nothing, and shows hostile names as text."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.plots import page
from stages.serving.leaderboard import COLUMNS, Row, cell

MACHINE = {"system": "Linux", "cores": 2, "device": "cpu", "threads": 1, "torch": "2"}


def rendered(name: str = "parts") -> str:
    metrics = {"image_auroc": {"value": 0.9, "low": 0.8, "high": 0.95}, "aupro": {"value": None, "reason": "no masks"}}
    row = Row(1, name, "patchcore", "quick", "random", metrics, {"latency_ms_p50": 12.3}, None, Path("metrics"), True)
    rows = [
        row,
        row._replace(rank=2, model="padim"),
        row._replace(rank=None, model="stfpm", metrics={}, refused="E101 no weights", tied=None),
    ]
    detail = {
        "category": name,
        "good": [1.0],
        "bad": [2.0],
        "thresholds": {"conformal": 1.5},
        "default": 1.5,
        "note": name,
        "suspicious": [name],
        "histogram": None,
    }
    section = {
        "task": "image", "unit": "image",
        "name": name, "rows": rows, "columns": {key: COLUMNS[key] for key in metrics}, "recommended": "patchcore", "note": "", "pictures": [],
        "errors_together": [{"models": ["patchcore", "<b>padim"], "both": 7, "by_chance": 2.4}],
        "verdict": {"headline": f"Take {name}", "why": ["because"], "tiles": [("3", "false alarms")]}, "seeds": {"patchcore": [0]},
        "charts": {}, "detail": [detail], "shifts": [], "warnings": [f"{name} is broken"],
        "data": {"about": {"licence": name}, "counts": {"test": {"good": 1}}},
    }  # fmt: skip
    return page.render("Assay", [section], {"date": "2026-01-01", "commit": "abc", "machine": MACHINE}, cell)


def test_figures_reasons_and_ties_are_on_the_page():
    text = rendered()
    assert ".900 [.800, .950]" in text and "E101 no weights" in text and "quick" in text and "RANDOM WEIGHTS" in text and "12.3" in text
    assert '<td class="name">patchcore and &lt;b&gt;padim</td><td>7</td><td>2</td>' in text
    assert 'title="no masks"' in text and text.count('<tr class="tied">') == 2


def test_a_hostile_name_is_text_wherever_it_stands():
    text = rendered("</script><script>alert(1)</script>")
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)" in text
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S).group(1)
    assert json.loads(data)[0]["detail"][0]["category"] == "</script><script>alert(1)</script>"


def test_the_policy_knows_every_script_of_the_page_and_lets_no_request_out():
    import base64
    import hashlib

    text = rendered()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text).group(1)
    scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
    assert len(scripts) == 2 and policy.startswith("default-src 'none'") and "connect-src" not in policy
    assert all(base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy for script in scripts)
    markup = re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    assert not re.search(r'(src|href)="(?!data:|#)', markup) and "url(" not in markup


@pytest.mark.parametrize("size", [(2000, 500), (100, 40)])
def test_a_thumbnail_keeps_its_shape_and_is_never_enlarged(size):
    import base64
    import io

    encoded = page.thumbnail(np.zeros((size[1], size[0], 3), dtype=np.uint8))
    small = Image.open(io.BytesIO(base64.b64decode(encoded.split(",")[1])))
    assert small.format == "JPEG" and small.size == (min(size[0], 640), round(size[1] * min(1, 640 / size[0])))


def test_the_page_for_dvc_plots_has_its_places_once_and_loads_nothing():
    text = page.dvc_template()
    assert text.count("{plot_divs}") == 1 and text.count("{refresh_tag}") == 1 and "{scripts}" not in text
    assert "vegaEmbed" in text and "src" not in re.sub(r"<script>.*?</script>", "", text, flags=re.S)
