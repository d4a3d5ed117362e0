"""SuperSimpleNet beside anomalib's: the same random features and the same weights, by name, in both."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.parity.row import Parity
from stages.detectors.discriminative.maths.losses import focal, truncated_l1
from stages.detectors.discriminative.supersimplenet import MARGIN, SuperSimpleNet, decay
from stages.types import Features

REFERENCE = "anomalib 2.7.0, SupersimplenetModel and SSNLoss"
NAMES = {  # ours -> theirs
    "adaptor": "adaptor.projection",
    "segmentation": "segdec.seg_head",
    "convolution": "segdec.cls_conv",
    "classification": "segdec.cls_fc",
}
SIGMOID = "anomalib applies a sigmoid to the blurred map and cuts its blur at 3 sigma where ours ends at 4"


def compare() -> Iterator[Parity]:
    features = random_features(4)
    for first in (False, True):
        paper = "the first paper" if first else "the extension"
        ours, theirs = both(features, adapted_classification=first)
        with torch.no_grad():
            embedded, given = ours._embed(features), theirs.feature_extractor(torch.zeros(1))
            adapted = ours.network.adaptor(embedded)
            logits, scores = ours.network(embedded, adapted)
            their_adapted = theirs.adaptor(given)
            their_logits, their_scores = theirs.segdec(their_adapted, their_adapted if first else given)
            found = theirs(torch.zeros(4, 3, 64, 64))
        if not first:
            yield row("features on twice the grid, from layers of 24 x 8 x 8 and 40 x 4 x 4", embedded, given)
        yield row(f"map logits, {paper}", logits, their_logits)
        yield row(f"image logit, {paper}", scores, their_scores)
        prediction = ours.score(features)
        yield row(f"image score under a sigmoid, {paper}", prediction.image_score.sigmoid(), found.pred_score)
        yield row(f"map at 64 px under a sigmoid, {paper}", prediction.anomaly_map.sigmoid(), found.anomaly_map[:, 0], SIGMOID)
        yield row(f"loss and its slopes on given masks, {paper}", *losses(ours, theirs, embedded, first))
    epochs = torch.tensor([decay(step, 50) for step in range(50)])
    yield row("factor on the learning rate over 50 epochs", epochs, multistep(50))


def row(compared: str, ours: Tensor, theirs: Tensor, note: str = "") -> Parity:
    return Parity("supersimplenet", REFERENCE, compared, (ours - theirs).abs().max().item(), 1e-4, note)


def random_features(count: int) -> Features:
    generator = torch.Generator().manual_seed(0)
    layers = {"layer2": torch.randn(count, 24, 8, 8, generator=generator), "layer3": torch.randn(count, 40, 4, 4, generator=generator)}
    return {**layers, "pixels": torch.zeros(count, 3, 64, 64, dtype=torch.uint8)}


class Handed(nn.Module):
    """In the place of the backbone: gives the layers that were put into it, whatever the image."""

    def __init__(self, given: Features) -> None:
        super().__init__()
        self.given = given

    def forward(self, images: Tensor) -> Features:
        return {name: self.given[name] for name in ("layer2", "layer3")}


def both(features: Features, adapted_classification: bool):
    """Ours, and theirs with our weights and without its own backbone."""
    from anomalib.models.image.supersimplenet import torch_model as peer

    ours = SuperSimpleNet(adapted_classification=adapted_classification)
    ours.network = ours._new_network(64, seed=1)
    ours.steps_trained = torch.tensor([1])
    for module in ours.network.modules():  # statistics as after a training, so that they are compared too
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=torch.Generator().manual_seed(2))
            module.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(3))
    theirs = peer.SupersimplenetModel.__new__(peer.SupersimplenetModel)
    nn.Module.__init__(theirs)
    theirs.feature_extractor = peer.UpscalingFeatureExtractor.__new__(peer.UpscalingFeatureExtractor)
    nn.Module.__init__(theirs.feature_extractor)
    theirs.feature_extractor.feature_extractor = Handed(features)
    theirs.feature_extractor.pooler = nn.AvgPool2d(3, 1, 1)
    theirs.adapt_cls_features = adapted_classification
    theirs.adaptor = peer.FeatureAdapter(64)
    theirs.segdec = peer.SegmentationDetectionModule(64, stop_grad=True)
    theirs.anomaly_map_generator = peer.AnomalyMapGenerator(sigma=4)
    weights = {
        name.replace(part, NAMES[part], 1): value for name, value in ours.network.state_dict().items() for part in [name.split(".")[0]]
    }
    kernel = {name: value for name, value in theirs.state_dict().items() if name.startswith("anomaly_map_generator")}
    theirs.load_state_dict(weights | kernel)
    return ours.eval(), theirs.eval()


def losses(ours: SuperSimpleNet, theirs, embedded: Tensor, first: bool) -> tuple[Tensor, Tensor]:
    """The loss and its slope on each weight, both networks in training mode and seeing the same features and the same mask."""
    from anomalib.models.image.supersimplenet.loss import SSNLoss

    mask = torch.zeros(len(embedded), 1, *embedded.shape[2:])
    mask[:2, :, 3:9, 5:12] = 1
    label = mask.amax(dim=(1, 2, 3))
    logits, scores = ours.network.train()(embedded, ours.network.adaptor(embedded))
    loss = truncated_l1(logits, mask, MARGIN) + focal(logits, mask) + focal(scores, label)
    adapted = theirs.train().adaptor(embedded)
    logits, scores = theirs.segdec(adapted, adapted if first else embedded)
    their_loss = SSNLoss()(logits, scores, mask, label)
    loss.backward()
    their_loss.backward()
    slopes = dict(theirs.named_parameters())
    pairs = [
        (value.grad, slopes[name.replace(part, NAMES[part], 1)].grad)
        for name, value in ours.network.named_parameters()
        for part in [name.split(".")[0]]
    ]
    found = [
        torch.cat([value.flatten() for value in side])
        for side in zip(*[(loss[None].detach(), their_loss[None].detach()), *pairs], strict=True)
    ]
    return found[0], found[1]


def multistep(epochs: int) -> Tensor:
    """What anomalib's MultiStepLR makes of a rate of 1."""
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, milestones=[int(epochs * 0.8), int(epochs * 0.9)], gamma=0.4)
    rates = []
    for _ in range(epochs):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    return torch.tensor(rates)
