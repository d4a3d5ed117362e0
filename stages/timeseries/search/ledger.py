"""What a stage of the search has finished: one line of JSON for each combination, on disk before the next one counts as begun.

A process that is killed while it writes leaves half a line; it is cut off when the file is next opened.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from stages.io import DamagedFile


class Ledger:
    """finished: number to line, in the order in which they were written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        whole, self.torn = _read(path)
        self.finished = {line["number"]: line for line in whole}

    def add(self, line: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.finished[line["number"]] = line


def _read(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """The whole lines, and whether half a line was cut off. Raises DamagedFile for a whole line that is none of ours."""
    if not path.is_file():
        return [], False
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    try:
        lines = [json.loads(line) for line in content[:end].splitlines()]
    except ValueError as error:
        raise DamagedFile(path, error) from error
    if end < len(content):
        os.truncate(path, end)
    return lines, end < len(content)
