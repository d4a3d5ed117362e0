"""The report as one HTML page that works from a file: every name escaped, every script known by its hash, nothing asked for.

Vega itself is written into the page. It compiles expressions, so the page's policy allows that, and nothing else: no request can leave it.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

HERE = Path(__file__).parent
PICTURE_WIDTH = 640  # pixels


def thumbnail(picture: np.ndarray, side: int = PICTURE_WIDTH) -> str:
    """(H, W, 3) uint8, made small enough to have many on a page, as a data URI; at most `side` pixels high and wide."""
    from PIL import Image

    small = Image.fromarray(picture)
    small.thumbnail((side, side))
    file = io.BytesIO()
    small.save(file, format="jpeg", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def render(title: str, sections: list[dict[str, Any]], made: dict[str, Any], cell: Callable[[Any], str]) -> str:
    """The page. sections: as `stages.serving.summary` builds them; made: {"date", "commit", "machine"}; cell: a metric as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    scripts = [_vega(), (HERE / "page.js").read_text(encoding="utf-8")]
    return environment.get_template("page.html.jinja").render(
        title=title,
        sections=sections,
        made=made,
        cell=cell,
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        scripts=scripts,
        hashes=[base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts],
        data=_embedded(sections),
    )


def dvc_template() -> str:
    """The page on which `dvc plots show` draws: without it DVC's own page would fetch Vega from the network."""
    head = f'<meta charset="utf-8">{{refresh_tag}}<title>Plots</title><script>{_vega()}</script>'
    return f"<!doctype html><html><head>{head}</head><body>{{plot_divs}}</body></html>\n"


def _embedded(sections: Sequence[dict[str, Any]]) -> str:
    """What the scripts read, as JSON that cannot end the element it stands in."""
    kept = [{"charts": section["charts"], "detail": section["detail"]} for section in sections]
    return json.dumps(kept, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


@cache
def _vega() -> str:
    """vega, vega-lite and vega-embed in one script."""
    import vl_convert

    return vl_convert.javascript_bundle().replace("</script", "<\\/script")
