"""A small slice of the two-stage search, so that the pipeline has run it: `assay search series` runs all of it.

Generates its own signals; writes metrics/search/series/. What is finished is kept in .assay/resume until all of it is.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from stages import errors
from stages.params import Params, load
from stages.timeseries.search import origin, outputs
from stages.timeseries.search.plan import Plan, Stage
from stages.timeseries.search.two_stage import Limits, search

OUT = Path("metrics/search/series")
RESUME = Path(".assay/resume")


def main() -> int:
    params = load()
    plan, limits = asked(params)
    state = RESUME / f"search_series-{origin.identity(plan)}"
    found = search(plan, state, limits)
    best = outputs.write(found, OUT, {"versions": versions()})
    shutil.rmtree(state, ignore_errors=True)
    print(f"best of {len(found.quick)}: {best['levels']}, ROC AUC {best['figures']['test_roc_auc']:.3f} on the test block")
    return errors.OK


def asked(params: Params) -> tuple[Plan, Limits]:
    """What the section series.search says."""
    section = params.signals.search
    quick, full = (Stage(**stage.model_dump()) for stage in (section.quick, section.full))
    plan = Plan(section.grid, section.regime, section.gain, section.seed, section.data_seed, quick=quick, full=full)
    compute = params.compute
    return plan, Limits(compute.processes, compute.threads, combinations=section.combinations, keep=(section.keep[0], section.keep[1]))


def versions() -> dict[str, str]:
    import platform

    import numpy
    import torch

    return {"python": platform.python_version(), "numpy": numpy.__version__, "torch": torch.__version__}


if __name__ == "__main__":
    sys.exit(errors.guarded(main))
