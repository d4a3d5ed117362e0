"""`parts` through all verbs but bench in a temporary folder, with some lines of params.yaml changed: what benchmarks of whole runs share."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from stages import io

ROOT = Path(__file__).parent.parent
MODELS = ("patchcore", "padim")
ONE_SEED = {"    - 0\n    - 1\n    - 2\n": "    - 0\n"}


@contextlib.contextmanager
def finished_run(changes: dict[str, str]) -> Iterator[Path]:
    """The folder of a finished run with one seed. changes: text of params.yaml -> what stands there instead."""
    text = (ROOT / "params.yaml").read_text()
    for old, new in (ONE_SEED | changes).items():
        if old not in text:
            raise ValueError(f"params.yaml has no {old!r} to change")
        text = text.replace(old, new, 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        io.write_text(folder / "params.yaml", text)
        verbs = ["prepare parts", "extract parts pixels", "extract parts lite0", "manifest parts"]
        for command in verbs + [f"{verb} parts-{model}" for model in MODELS for verb in ("train", "evaluate")]:
            subprocess.run([sys.executable, "-m", *f"stages.{command}".split()], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
        yield folder
