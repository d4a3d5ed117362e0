"""The report as one HTML page that works from a file: no script, no request, every name escaped."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any


def embedded(png: bytes) -> str:
    """A picture as it stands in a data URI."""
    return base64.b64encode(png).decode()


def render(title: str, datasets: list[dict[str, Any]], cell: Any) -> str:
    """The page. `datasets` as `stages.report` builds them; `cell` turns a metric into text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template("page.html.jinja").render(title=title, datasets=datasets, cell=cell)
