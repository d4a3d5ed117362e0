"""DFM beside anomalib's: the same random features into both, each fitted by its own code."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from benchmarks.parity.row import Parity
from stages.detectors.density.dfm import DFM
from stages.training import Run
from stages.types import Features
from tests.arrays import ArrayBatches

REFERENCE = "anomalib 2.7.0, DFMModel"
KEPT = "anomalib keeps one axis less than its share of variance asks for: it takes the position of the first that suffices for their number"
BROKEN = "only score_samples is compared: in 2.7.0 the fit of its Gaussian fails, as torch.mean takes no device"


def compare() -> Iterator[Parity]:
    train, test = features(30, seed=0), features(6, seed=1)
    ours = DFM(layer="layer3", pooling=4).fit(ArrayBatches(train), None, Run(seed=0, quiet=True))
    found, axes = ours.score(test), ours.axes.shape[1]
    same, default = reference(train, test, n_comps=axes), reference(train, test, n_comps=0.97)
    what = "30 random training images of 24 x 8 x 8, 6 test images"
    yield row(f"FRE score, both fitted with {axes} axes; {what}", found.image_score, same.pred_score)
    yield row(f"FRE map, both fitted with {axes} axes; {what}", found.anomaly_map, same.anomaly_map[:, 0])
    yield row(f"FRE score, 97 % of the variance; {what}", found.image_score, default.pred_score, KEPT)
    ours = DFM(layer="layer3", pooling=4, score_type="nll").fit(ArrayBatches(train), None, Run(seed=0, quiet=True))
    found = ours.score(test).image_score
    yield row("NLL score of the same projections", found, gaussian(ours, train, test), BROKEN)


def row(compared: str, ours: torch.Tensor, theirs: torch.Tensor, note: str = "") -> Parity:
    return Parity("dfm", REFERENCE, compared, (ours - theirs).abs().max().item(), 1e-4, note)


def features(count: int, seed: int) -> Features:
    """Near ten directions, as features of one kind of image are; the mean is not 0."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(10, 24 * 8 * 8, generator=torch.Generator().manual_seed(7))
    values = 1 + 0.1 * torch.randn(count, 24 * 8 * 8, generator=generator) + 0.3 * torch.randn(count, 10, generator=generator) @ mixing
    return {"layer3": values.view(count, 24, 8, 8), "pixels": torch.zeros(count, 3, 64, 64, dtype=torch.uint8)}


class Handed(nn.Module):
    """In the place of the backbone: gives the features that were put into it, whatever the image."""

    def __init__(self, given: Features) -> None:
        super().__init__()
        self.given = given

    def forward(self, images: torch.Tensor) -> Features:
        return {"layer3": self.given["layer3"].clone()}


def reference(train: Features, test: Features, **options):
    from anomalib.models.image.dfm.torch_model import DFMModel

    model = DFMModel(backbone="resnet18", layer="layer3", pre_trained=False, **options)
    images = torch.zeros(1, 3, 64, 64)
    model.feature_extractor = Handed(train)
    model.train()(images)
    model.fit()
    model.feature_extractor = Handed(test)
    return model.eval()(images)


def gaussian(ours: DFM, train: Features, test: Features) -> torch.Tensor:
    """The scores of anomalib's Gaussian, which is given the decomposition of our projections that its own fit would make."""
    from anomalib.models.image.dfm.torch_model import SingleClassGaussian

    seen, asked = ((ours._pool(part).flatten(1) - ours.mean) @ ours.axes for part in (train, test))
    model = SingleClassGaussian()
    model.mean_vec = seen.mean(dim=0)
    model.u_mat, model.sigma_mat, _ = torch.linalg.svd((seen - model.mean_vec).T / len(seen) ** 0.5, full_matrices=False)
    return model.score_samples(asked)
