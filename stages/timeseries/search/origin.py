"""What a search in a folder may be gone on with: the plan it was begun with, and code that still gives the same figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stages import io
from stages.errors import UserError
from stages.timeseries.search.plan import Plan

STAGES = Path(__file__).parents[2]
CODE = (
    "training.py", "seed.py", "datasets/server_metrics.py", "datasets/injected.py", "metrics/ranking.py", "metrics/counts.py",
    "timeseries/detector.py", "timeseries/windows.py", "timeseries/masked_autoencoder.py", "timeseries/masked/*.py",
    "timeseries/search/grid.py", "timeseries/search/plan.py", "timeseries/search/judging.py",
)  # fmt: skip


def code() -> dict[str, str]:
    """The hash of every file that decides a figure."""
    return {path.relative_to(STAGES).as_posix(): io.file_hash(path) for pattern in CODE for path in sorted(STAGES.glob(pattern))}


def identity(plan: Plan) -> str:
    """Differs wherever figures may."""
    return io.content_hash([plan.as_json(), code()])[:16]


def begin(folder: Path, plan: Plan) -> None:
    """Write down what is begun in `folder`. Raises UserError where something else was."""
    if (folder / "search.json").is_file():
        if go_on(folder) != plan:
            raise UserError(f"{folder} holds a search with another plan; go on with it with --resume alone, or take another folder")
        return
    io.write_json(folder / "search.json", {"plan": plan.as_json(), "code": code()})


def go_on(folder: Path) -> Plan:
    """The plan of the search in `folder`. Raises Missing where there is none, UserError where figures would no longer fit those before."""
    begun: dict[str, Any] = io.read_json(folder / "search.json")
    now = code()
    changed = sorted(name for name in begun["code"].keys() | now.keys() if begun["code"].get(name) != now.get(name))
    if changed:
        raise UserError(
            f"{folder}: {', '.join(changed)} changed since this search was begun, so new figures would not fit the old; begin another"
        )
    return Plan.of_json(begun["plan"])
