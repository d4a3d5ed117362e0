"""MuSc: in a set of unlabelled images, a patch is as anomalous as it is far from the patches of the other images; nothing is trained.

A good patch has a near neighbour in most other images, a defect in few. Patch features are averaged over r x r neighbourhoods and set to length 1; a patch
has one distance to each other image, that to its nearest patch there, and the mean of the lowest 30 % of these is its score, averaged over layers and r.
The image score is that of its worst patch, averaged with those of the images that look most like it. Li et al., "MuSc: Zero-Shot Industrial Anomaly
Classification and Segmentation with Mutual Scoring of the Unlabeled Images", ICLR 2024, arXiv:2401.16753. Its encoder is a CLIP ViT-L/14 at 518 px.

It is transductive: a score is of an image among these others and holds in no other set. What many of them show is normal, also the same defect.

Deviations from the paper:
- A set larger than `group` is cut into groups that are compared within themselves. Images are dealt out in the order of their mean feature, so that groups are
  alike and the order of rows does not matter (but between images of the same mean). The paper does not cut sets of up to 200 images.
- Any frozen encoder. Layers may differ in size: each is compared on its own grid, and maps are resized to the finest before their mean is taken.
- An image is like another by the vector of layer `whole`: the class token where that ends in `_extra`, else the mean over positions. A negative cosine counts
  as none. Scores are not brought to 0..1 before, which would change no rank.
- The image score is the highest of the patches, not of the enlarged map; maps are enlarged between cell centres.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.detectors.maps import to_pixels
from stages.types import Batches, Detector, Features, Need, Prediction, Refusal

if TYPE_CHECKING:
    from stages.training import Run

CELLS = 2**18  # cosines in memory at once: what fits into a cache


class MuSc(Detector):
    """whole: layer that says how alike two images are; None is the last of `layers`. sides: of the neighbourhoods r, in cells. lowest: share of the
    other images whose mean distance is a patch's score. neighbours: how many images, itself among them, an image's score is averaged over, and then over
    these numbers; () leaves it as it is. group: images that are compared at once."""

    zero_shot = True
    transductive = True

    def __init__(
        self,
        *,
        layers: tuple[str, ...] = ("block5", "block11", "block17", "block23"),
        whole: str | None = "image",
        sides: tuple[int, ...] = (1, 3, 5),
        lowest: float = 0.3,
        neighbours: tuple[int, ...] = (1, 2, 3),
        group: int = 200,
    ) -> None:
        super().__init__()
        if not layers or not sides or any(side < 1 or side % 2 == 0 for side in sides):
            raise ValueError(f"MuSc needs one layer or more, and odd sides, got {layers} and {sides}")
        if not 0 < lowest <= 1 or group < 3 or any(count < 1 for count in neighbours):
            raise ValueError(f"lowest must be in 0..1, group 3 or more, neighbours positive, got {lowest}, {group} and {neighbours}")
        self.layers, self.whole = tuple(layers), whole or layers[-1]
        self.needs = Need(layers=tuple(dict.fromkeys([*self.layers, self.whole])))
        self.sides, self.lowest, self.neighbours, self.group = sides, lowest, neighbours, group
        self.register_buffer("here", torch.empty(0), persistent=False)  # knows the device; nothing is learnt

    def fit(self, train: Batches, val: Batches | None, run: Run) -> Self:
        """Learns nothing and looks at no image."""
        return self.to(run.device)

    @torch.no_grad()
    def score(self, features: Features) -> Prediction:
        """Of one whole set, each image among the others. Raises Refusal for a single image."""
        count = len(features[self.whole])
        if count < 2:
            raise Refusal(
                f"MuSc compares the images of a set with each other, got {count}: give it more, or use a detector that judges one image"
            )
        layers = [features[layer].to(self.here.device, torch.float32) for layer in self.layers]
        grid = max(tuple(layer.shape[2:]) for layer in layers)
        patches = torch.empty(count, *grid, device=self.here.device)
        for members in dealt(layers[0].flatten(1).mean(dim=1, dtype=torch.float64), self.group):
            patches[members] = self._compared([layer[members] for layer in layers], grid)
        if not patches.isfinite().all():
            raise ValueError("features of the images hold NaN or infinity; extract them again")
        whole = features[self.whole].to(patches).flatten(2)
        whole = whole[:, :, 0] if self.whole.endswith("_extra") else whole.mean(dim=2)
        scores = among_neighbours(patches.flatten(1).amax(dim=1), whole, self.neighbours)
        return Prediction(scores, to_pixels(patches, tuple(features["pixels"].shape[2:])))

    def _compared(self, layers: list[Tensor], grid: tuple[int, int]) -> Tensor:
        """(n, h, w) of one group, the mean over layers (n, C, h', w') and sides."""
        found = [
            to_pixels(mutual_scores(patches_of(layer, side), self.lowest).unflatten(1, layer.shape[2:]), grid)
            for layer in layers
            for side in self.sides
        ]
        return torch.stack(found).mean(dim=0)


def dealt(means: Tensor, group: int) -> list[Tensor]:
    """Positions of (n,) images in groups of at most `group`, dealt out like cards in the order of their means."""
    order, groups = means.argsort(stable=True), -(-len(means) // group)
    return [order[first::groups] for first in range(groups)]


def patches_of(layer: Tensor, side: int) -> Tensor:
    """(n, N, C) of length 1 from (n, C, h, w): normalised over each whole image, then averaged over side x side cells, those beyond the border being 0."""
    normalised = F.layer_norm(layer, layer.shape[1:])
    return F.normalize(F.avg_pool2d(normalised, side, 1, side // 2).flatten(2).transpose(1, 2), dim=2)


def mutual_scores(patches: Tensor, lowest: float) -> Tensor:
    """(n, N): for each of (n, N, C) patches of length 1, the mean of the lowest share of its distances to the other images, of one distance at least."""
    count, size, _ = patches.shape
    kept, step, scores = max(1, int(lowest * (count - 1))), max(1, CELLS // size**2), []
    for image in range(count):
        cosines = [(patches[image] @ some.flatten(0, 1).T).unflatten(1, (-1, size)).amax(dim=2) for some in patches.split(step)]
        nearest = torch.cat(cosines, dim=1)  # (N, n)
        nearest[:, image] = -torch.inf
        scores.append((2 - 2 * nearest.topk(kept, dim=1).values).clamp(min=0).sqrt().mean(dim=1))
    return torch.stack(scores)


def among_neighbours(scores: Tensor, whole: Tensor, neighbours: tuple[int, ...]) -> Tensor:
    """(n,) scores averaged over the images that are most like each, itself among them, weighed by the cosine of (n, D); the mean over numbers of neighbours."""
    if not neighbours:
        return scores
    vectors, found = F.normalize(whole, dim=1), []
    cosines = (vectors @ vectors.T).clamp(min=0)
    for count in neighbours:
        weights, places = cosines.topk(min(count, len(scores)), dim=1)
        found.append((weights * scores[places]).sum(dim=1) / weights.sum(dim=1))
    return torch.stack(found).mean(dim=0)
