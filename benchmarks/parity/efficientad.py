"""EfficientAD against anomalib's: the same weights in all three networks, the same statistics, the same augmented image."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.parity.row import Parity
from stages.detectors.distillation.efficientad import EfficientAD
from stages.encoders.pdn import PDN

REFERENCE = "anomalib 2.7.0, EfficientAdModel"


@torch.no_grad()
def compare() -> Iterator[Parity]:
    from anomalib.models.image.efficient_ad.torch_model import EfficientAdModel, EfficientAdModelSize

    for size in ("small", "medium"):
        generator = torch.Generator().manual_seed(0)
        theirs = EfficientAdModel(model_size=EfficientAdModelSize(size), padding=False, pad_maps=True).eval()
        ours = EfficientAD(size=size, teacher_weights="random")
        ours.load_state_dict(_renamed(theirs.state_dict(), ours, generator))
        theirs.mean_std.update({"mean": ours.mean[None, :, None, None], "std": ours.std[None, :, None, None]})
        names = (("qa_st", "qb_st"), ("qa_ae", "qb_ae"))
        theirs.quantiles.update({name: ours.quantiles[side, which] for side, pair in enumerate(names) for which, name in enumerate(pair)})

        levels = torch.randint(256, (2, 3, 256, 256), generator=generator, dtype=torch.uint8)
        predicted, (image_score, anomaly_map) = theirs(levels / 255), ours.score({"pixels": levels})
        yield _row(size, "map, 256 px, random weights", anomaly_map, predicted.anomaly_map[:, 0])
        yield _row(size, "image score", image_score, predicted.pred_score[:, 0])

        one, penalty, jittered = (torch.randint(256, (1, 3, 256, 256), generator=generator, dtype=torch.uint8) for _ in range(3))
        theirs.choose_random_aug_image = lambda image, jittered=jittered: jittered / 255
        _, distance = theirs.compute_student_teacher_distance(one / 255)
        expected = torch.stack(theirs.compute_losses(one / 255, penalty / 255, distance))
        yield _row(size, "the three losses, one image, dropout off", torch.stack(ours.losses(one, jittered, penalty)), expected)
    yield from _padded()


def _padded() -> Iterator[Parity]:
    from anomalib.models.image.efficient_ad.torch_model import MediumPatchDescriptionNetwork, SmallPatchDescriptionNetwork

    levels = torch.randint(256, (1, 3, 70, 61), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    for size, network in (("small", SmallPatchDescriptionNetwork), ("medium", MediumPatchDescriptionNetwork)):
        theirs, ours = network(384, padding=True), PDN(size=size, padding=True)
        ours.load_state_dict(theirs.state_dict())
        yield _row(size, "teacher with padding, 70 x 61 px", ours(levels), theirs(levels / 255))


def _renamed(state: dict[str, torch.Tensor], ours: EfficientAD, generator: torch.Generator) -> dict[str, torch.Tensor]:
    names = {"ae.encoder.enconv": ("autoencoder.encoder.", -1), "ae.decoder.deconv": ("autoencoder.decoder.", -1)}
    found = {key: value for key, value in state.items() if key.startswith(("teacher.", "student."))}
    for key, value in state.items():
        for theirs, (own, shift) in names.items():
            if key.startswith(theirs):
                number, rest = key.removeprefix(theirs).split(".")
                name = "autoencoder.last" if key.startswith("ae.decoder.deconv8") else f"{own}{int(number) + shift}"
                found[f"{name}.{rest}"] = value
    found["mean"] = torch.randn(384, generator=generator) * 0.01
    found["std"] = torch.rand(384, generator=generator) + 0.1
    found["quantiles"] = torch.tensor([[0.1, 0.5], [0.01, 0.2]])
    return {**found, "steps_trained": torch.tensor([1])}


def _row(size: str, compared: str, ours: torch.Tensor, theirs: torch.Tensor) -> Parity:
    return Parity(f"efficientad-{size}", REFERENCE, compared, (ours - theirs).abs().max().item(), 1e-4)
