"""The whole suite runs offline, children included, and with one thread per process as the pipeline does."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
OFFLINE = ROOT / "tests" / "offline"

os.environ["PYTHONPATH"] = os.pathsep.join([str(OFFLINE), str(ROOT)])
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
for variable, value in {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}.items():
    os.environ[variable] = value
sys.path[:0] = [str(OFFLINE), str(ROOT)]

import pytest  # noqa: E402
import sitecustomize  # noqa: E402  the interpreter that runs the tests started before its folder was on the path

if Path(sitecustomize.__file__).parent != OFFLINE:
    raise RuntimeError(f"another sitecustomize ({sitecustomize.__file__}) hides {OFFLINE}: sockets would not be blocked")


@pytest.fixture
def root() -> Path:
    """The repository."""
    return ROOT
