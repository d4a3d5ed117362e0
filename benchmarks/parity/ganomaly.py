"""GANomaly beside anomalib's GanomalyModel and its losses (Apache-2.0), with the same weights on the same random input."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.parity.row import Parity
from stages.detectors.reconstruction.ganomaly import GANomaly, Rivals
from stages.detectors.reconstruction.maths.unet import initialised

REFERENCE = "anomalib 2.7.0"
SIDE, LATENT, WIDTH = 64, 100, 16


def compare() -> Iterator[Parity]:
    from anomalib.models.image.ganomaly.loss import DiscriminatorLoss, GeneratorLoss
    from anomalib.models.image.ganomaly.torch_model import GanomalyModel

    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = GanomalyModel((SIDE, SIDE), 3, WIDTH, LATENT).eval()
    for part in theirs.modules():  # fresh weights of N(0, 0.02) would make all differences small
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            part.weight.data *= 2
    ours = initialised(lambda: Rivals(SIDE, LATENT, WIDTH), seed=0).eval()
    copy_weights(theirs, ours)
    images = 2 * torch.rand(3, 3, SIDE, SIDE, generator=generator) - 1
    with torch.no_grad():
        drawn, code, second = ours.generator(images)
        score, their_score = (code - second).square().mean(dim=1), theirs(images).pred_score
        note = "anomalib's first convolution pads by 4, which shifts the grid and lets a margin of zeros in; DCGAN and the authors pad by 1"
        yield row("GanomalyModel", "score as it stands, 3 images", score, their_score, note)
        for network in (theirs.generator.encoder1, theirs.generator.encoder2):
            network.input_layers[0].padding = (1, 1)
        theirs.discriminator.features[0].padding = (1, 1)
        their_drawn, their_code, their_second = theirs.generator(images)
        yield row("GanomalyModel, padding 1", "drawn image, 3 x 3 x 64 x 64", drawn, their_drawn)
        yield row("GanomalyModel, padding 1", "score, 3 images", score, theirs(images).pred_score)
        real, false = (theirs.discriminator(shown)[0] for shown in (images, their_drawn))
        against = DiscriminatorLoss()(real, false)
        yield row("DiscriminatorLoss", "discriminator's loss", ours.discriminator_loss(images, drawn), against)
        contextual = GANomaly(adversarial=0.0, encoding=0.0)._errors(images, drawn, code, second * 0 + code).mean()
        theirs_contextual = GeneratorLoss(wadv=0, wenc=0)(their_code, their_second, images, their_drawn, real, false)
        yield row("GeneratorLoss", "contextual term at weight 50", contextual, theirs_contextual)
        encoding = GANomaly(contextual=0.0)._errors(images, drawn, code, second).mean()
        theirs_encoding = GeneratorLoss(wadv=0, wcon=0)(their_code, their_second, images, their_drawn, real, false)
        note = "anomalib takes a smooth L1 of the codes, the paper their squared distance"
        yield row("GeneratorLoss", "encoding term", encoding, theirs_encoding, note)
        deceives = (ours.frozen_features(images) - ours.frozen_features(drawn)).square().mean()
        theirs_deceives = GeneratorLoss(wcon=0, wenc=0)(their_code, their_second, images, their_drawn, real, false)
        note = "anomalib compares the discriminator's verdicts, the paper its features"
        yield row("GeneratorLoss", "adversarial term", deceives, theirs_deceives, note)


def row(reference: str, compared: str, ours: Tensor, theirs: Tensor, note: str = "") -> Parity:
    return Parity("ganomaly", f"{REFERENCE} {reference}", compared, (ours - theirs).abs().max().item(), 1e-4, note)


def copy_weights(theirs: nn.Module, ours: Rivals) -> None:
    """By the order in which layers are applied, which both networks share."""
    copy_layers(theirs.generator.encoder1, ours.generator.encoder)
    copy_layers(theirs.generator.decoder, ours.generator.decoder)
    copy_layers(theirs.generator.encoder2, ours.generator.second_encoder)
    copy_layers(theirs.discriminator, nn.Sequential(ours.features, ours.verdict))


def copy_layers(source: nn.Module, target: nn.Module) -> None:
    def learnt(module: nn.Module) -> list[nn.Module]:
        return [part for part in module.modules() if isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d)]

    for theirs, ours in zip(learnt(source), learnt(target), strict=True):
        ours.load_state_dict(theirs.state_dict())
