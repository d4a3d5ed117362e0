"""A small slice of the two-stage search, so that the pipeline has run it: `assay search series` runs all of it.

Generates its own signals; writes metrics/search/series/. What is finished is kept in .assay/resume until all of it is.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from stages import errors
from stages.params import Params, ParamsError, load
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
    if section is None:
        raise ParamsError(
            "params.yaml has no section series.search, which says what slice of the grid is searched; see docs/series_search.md"
        )
    quick, full = (Stage(**stage.model_dump()) for stage in (section.quick, section.full))
    said = {name: getattr(section, name) for name in ("grid", "regime", "gain", "seed", "data_seed", "interval_scale")}
    plan = Plan(**said, judged=tuple(section.judged), quick=quick, full=full)
    return plan, Limits(params.compute.processes, params.compute.threads, combinations=section.combinations, keep=tuple(section.keep))


def versions() -> dict[str, str]:
    import platform

    import numpy
    import torch

    return {"python": platform.python_version(), "numpy": numpy.__version__, "torch": torch.__version__}


if __name__ == "__main__":
    sys.exit(errors.guarded(main))
