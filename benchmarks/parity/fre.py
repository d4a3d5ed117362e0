"""FRE beside anomalib's: the same random weights in both, the same features of an untrained ResNet-18."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.parity.row import Parity
from stages.detectors.distillation.fre import FRE, TiedAutoencoder

REFERENCE = "anomalib 2.7.0, FREModel"


@torch.no_grad()
def compare() -> Iterator[Parity]:
    from anomalib.models.image.fre.torch_model import FREModel

    torch.manual_seed(0)
    theirs = FREModel("resnet18", "layer3", input_dim=256 * 4 * 4, latent_dim=20, pre_trained=False, pooling_kernel_size=2).eval()
    theirs.fre_model.encoder_bias.normal_()
    theirs.fre_model.decoder_bias.normal_()
    ours = FRE(latent=20)
    ours.autoencoder = TiedAutoencoder(torch.empty_like(theirs.fre_model.weight))
    ours.autoencoder.load_state_dict(theirs.fre_model.state_dict())  # the three parameters bear the same names
    images = torch.randn(3, 3, 128, 128)
    features = {"layer3": theirs.feature_extractor(images)["layer3"], "pixels": torch.zeros(3, 3, 128, 128, dtype=torch.uint8)}
    prediction, expected = ours.score(features), theirs(images)
    scale = expected.anomaly_map.abs().max()
    difference = (prediction.anomaly_map - expected.anomaly_map[:, 0]).abs().max() / scale
    yield Parity("fre", REFERENCE, "anomaly map over its largest value, 3 random images of 128 px", difference.item(), 1e-4)
    difference = (prediction.image_score / expected.pred_score - 1).abs().max()
    yield Parity("fre", REFERENCE, "image score, relative", difference.item(), 1e-4)
