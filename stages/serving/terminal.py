"""How commands print: JSON for machines, a table for people."""

from __future__ import annotations

import json
from typing import Any


def as_text(content: Any) -> str:
    """JSON; paths as strings."""
    return json.dumps(content, indent=2, ensure_ascii=False, default=str)


def show(rows: list[dict[str, Any]], as_json: bool, columns: tuple[str, ...]) -> None:
    """All of every row as JSON, or the named columns as a table; what is None reads "absent"."""
    if as_json:
        print(as_text(rows))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns)
    for row in rows:
        table.add_row(*("absent" if row[column] is None else str(row[column]) for column in columns))
    Console().print(table)
