"""DFKDE beside anomalib's classifier: the same random vectors into both, each fitted by its own code."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.parity.row import Parity
from stages.detectors.density.dfkde import DFKDE
from stages.training import Run
from stages.types import Features
from tests.arrays import ArrayBatches

REFERENCE = "anomalib 2.7.0, KDEClassifier"
TIES = "beyond a log density of about -100 anomalib's float32 density is 0, its probability 1 and its score the same for every image"
CENTRED = "anomalib centres the unit vectors of training in place, and not those that it scores"


def compare() -> Iterator[Parity]:
    train, test = features(60, seed=0), features(8, seed=1)
    for scaling, note in (("scale", ""), ("norm", CENTRED)):
        ours = DFKDE(scaling=scaling).fit(ArrayBatches(train), None, Run(seed=0, quiet=True)).score(test).image_score
        what = f"scaling {scaling}, 60 training vectors of 64 numbers, 8 test vectors"
        yield row(f"log density; {what}", -ours, reference(train, test, scaling, logarithm=True), note)
        yield row(f"probability; {what}", torch.sigmoid(0.05 * (ours + 12)), reference(train, test, scaling), note)
    far = {name: values * 20 for name, values in test.items()}
    ours = DFKDE().fit(ArrayBatches(train), None, Run(seed=0, quiet=True)).score(far).image_score
    yield row(
        "log density of vectors 20 times as long", -ours, reference(train, far, "scale", logarithm=True).nan_to_num(neginf=-1e4), TIES
    )


def row(compared: str, ours: Tensor, theirs: Tensor, note: str = "") -> Parity:
    return Parity("dfkde", REFERENCE, compared, (ours - theirs).abs().max().item(), 1e-4, note)


def features(count: int, seed: int) -> Features:
    values = 1 + torch.randn(count, 64, 1, 1, generator=torch.Generator().manual_seed(seed))
    return {"layer4": values, "pixels": torch.zeros(count, 3, 8, 8, dtype=torch.uint8)}


def reference(train: Features, test: Features, scaling: str, logarithm: bool = False) -> Tensor:
    """Fresh copies go in, for anomalib writes into what it is given."""
    from anomalib.models.components.classification import FeatureScalingMethod, KDEClassifier

    model = KDEClassifier(n_pca_components=16, feature_scaling_method=FeatureScalingMethod(scaling))
    seen, asked = (part["layer4"].flatten(1).clone() for part in (train, test))
    model.fit(seen)
    return model.compute_kde_scores(asked, as_log_likelihood=True) if logarithm else model.predict(asked)
