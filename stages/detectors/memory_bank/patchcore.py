"""PatchCore: a patch is as anomalous as it is far from the nearest normal patch in a memory bank.

Features of two layers of a frozen network are averaged over 3x3 neighbourhoods, joined on the finer grid, and a greedy coreset of all
training patches is kept. The anomaly map holds the distances to it; the image score is the largest of them, re-weighted by how dense the
bank is around the nearest row. Roth et al., "Towards Total Recall in Industrial Anomaly Detection", arXiv:2106.08265, equations 1-7 and
Algorithm 1.

Deviations from the paper and its published code:
- Layers are pooled, resized and concatenated at their full width; the published code pools each 3x3xC patch and the joined one to 1024
  numbers.
- The random projection to 128 dimensions serves the choice of the coreset only, and only where it at least halves the width.
- The published code leaves out the re-weighting (equation 7) and uses squared distances; here both are as in the paper.
- `bank_gb` caps the memory: above it the training images come in chunks, and the bank is the union of the chunks' coresets. Its size is the
  same, and no patch is farther from it than from the coreset of its own chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.detectors.maps import gaussian_blur, to_pixels
from stages.detectors.memory_bank.maths.coreset import greedy_coreset, random_projection
from stages.detectors.memory_bank.maths.neighbours import Search, build_index, distances, nearest, own_neighbours
from stages.types import Batches, Detector, Features, Need, Prediction, Refusal

if TYPE_CHECKING:
    from stages.training import Run

MEASURED_IMAGES = 64  # on which the error of an approximate search is measured


class PatchCore(Detector):
    """coreset_ratio: share of the patches kept. projection: width in which the coreset is chosen. reweighting: b of equation 7, 1 for the
    plain maximum.

    search: how the nearest row is found: exactly by faiss (flat) or by torch, or approximately. blur_sigma: in pixels of the map. bank_gb:
    what fit may hold of patches and bank, in 10^9 bytes.
    """

    one_pass = True

    def __init__(
        self,
        *,
        layers: tuple[str, ...] = ("layer2", "layer3"),
        coreset_ratio: float = 0.1,
        projection: int = 128,
        reweighting: int = 9,
        search: Search = "flat",
        blur_sigma: float = 4.0,
        bank_gb: float = 4.0,
    ) -> None:
        super().__init__()
        if not 0 < coreset_ratio <= 1:
            raise ValueError(f"coreset_ratio must be above 0 and at most 1, got {coreset_ratio}")
        if reweighting < 1 or projection < 1:
            raise ValueError(f"reweighting and projection must be at least 1, got {reweighting} and {projection}")
        self.needs = Need(layers=tuple(layers))
        self.coreset_ratio, self.projection, self.reweighting = coreset_ratio, projection, reweighting
        self.search, self.blur_sigma, self.bank_gb = search, blur_sigma, bank_gb
        self.register_buffer("memory_bank", torch.empty(0, 0))  # (M, D)
        self.register_buffer("neighbours", torch.empty(0, 0, dtype=torch.int64))  # (M, b): rows of the bank nearest to each of its rows
        self.register_buffer("search_error", torch.empty(0))  # mean and largest relative change of image scores by an approximate search
        self._index: Any = None

    def fit(self, train: Batches, val: Batches | None, run: Run) -> Self:
        patches, _ = self._patches(train.take([0]).features)
        images = self._images_at_once(train.samples, *patches.shape[1:])
        chunks = math.ceil(train.samples / images)
        rows, width = train.samples * patches.shape[1], patches.shape[2]
        estimate = f"{rows:,} patches x {width} = {rows * width * 4e-9:.2f} GB, coreset {self.coreset_ratio:.1%} of them"
        run.say(f"memory bank: {estimate}" + (f", in {chunks} chunks to stay below bank_gb = {self.bank_gb:g}" if chunks > 1 else ""))
        self.memory_bank = torch.cat([self._coreset(chunk, number, run) for number, chunk in enumerate(self._chunks(train, images, run))])
        self.neighbours = own_neighbours(self.memory_bank, min(self.reweighting, len(self.memory_bank)))
        self._index = None
        run.history.append({"memory_bank_rows": len(self.memory_bank), "patches": rows, "chunks": chunks})
        if self.search in ("hnsw", "ivf"):
            self._measure_search(val if val is not None and val.samples else train, run)
        return self

    @torch.no_grad()
    def score(self, features: Features) -> Prediction:
        self.require_fitted(self.memory_bank)
        if self._index is None:
            self._index = build_index(self.memory_bank, self.search)
        return self._predict(features, self._index)

    def _patches(self, features: Features) -> tuple[Tensor, tuple[int, int]]:
        """(B, h*w, D) embeddings on the grid of the finest layer, and that grid. Pooling comes before resizing."""
        pooled = [F.avg_pool2d(features[layer].float(), kernel_size=3, stride=1, padding=1) for layer in self.needs.layers]
        grid = max(tuple(layer.shape[2:]) for layer in pooled)
        joined = torch.cat([F.interpolate(layer, grid, mode="bilinear", align_corners=False) for layer in pooled], dim=1)
        return joined.flatten(2).transpose(1, 2), grid

    def _images_at_once(self, samples: int, patches: int, width: int) -> int:
        """How many images' patches may lie in memory at once beside the growing bank; fewer than `samples` means chunks."""
        kept = self.coreset_ratio * samples * patches * width * 4 * 2  # the rows, and the copy that faiss makes of them
        per_image = patches * 4 * (width + (self.projection if self._projects(width) else 0) + 2)  # + norms and distances
        fits = int((self.bank_gb * 1e9 - kept) // per_image)
        if fits >= samples:
            return samples
        if fits < 1:
            raise Refusal(self._too_large(kept, samples * patches * width * 8, per_image))
        return math.ceil(samples / math.ceil(samples / fits))

    def _too_large(self, kept: float, whole: float, per_image: float) -> str:
        import psutil

        ratio = max(0.0, self.bank_gb * 1e9 - per_image) / whole
        smaller = f"coreset_ratio to {ratio:.2g} or less" if ratio > 0 else "the image size or the number of layers"
        return (
            f"E501 bank too large: the coreset and its search index need {kept * 1e-9:.2f} GB and one image {per_image * 1e-9:.2f} GB, "
            f"but bank_gb is {self.bank_gb:g} (this machine has {psutil.virtual_memory().total * 1e-9:.0f} GB). "
            f"Lower {smaller}, choose layers of fewer channels, or raise bank_gb"
        )

    def _projects(self, width: int) -> bool:
        return width >= 2 * self.projection

    def _chunks(self, train: Batches, images: int, run: Run) -> Iterator[Tensor]:
        """(N, D) patches of `images` images at a time, in one buffer that the next chunk overwrites."""
        stream, buffer = self._images(train), torch.empty(0)
        for first in range(0, train.samples, images):
            count = min(images, train.samples - first)
            with run.progress("patches", count) as advance:
                for place, patches in enumerate(islice(stream, count)):
                    if buffer.numel() == 0:
                        buffer = torch.empty(images, *patches.shape, device=run.device)
                    buffer[place] = patches
                    advance(1)
            yield buffer[:count].flatten(0, 1)

    def _images(self, train: Batches) -> Iterator[Tensor]:
        """(h*w, D) patches of one image after the other."""
        for batch in train:
            patches, _ = self._patches(batch.features)
            if not patches.isfinite().all():
                raise ValueError(f"features of {', '.join(batch.sample_id)} hold NaN or infinity; extract them again")
            yield from patches

    def _coreset(self, patches: Tensor, number: int, run: Run) -> Tensor:
        size = max(1, int(self.coreset_ratio * len(patches)))
        start = int(torch.randint(len(patches), (1,), generator=run.generator("coreset start", number)))
        width = patches.shape[1]
        space = patches
        if self._projects(width):
            space = patches @ random_projection(width, self.projection, run.generator("projection")).to(patches.device)
        with run.progress("coreset", size) as advance:
            return patches[greedy_coreset(space, size, start, advance)]

    def _predict(self, features: Features, index: Any) -> Prediction:
        """One search per image, so that a score cannot depend on the batch through the rounding of a matrix product."""
        patches, grid = self._patches(features)
        scored = [self._score_image(image, index) for image in patches.to(self.memory_bank.device)]
        patch_scores = torch.stack([scores for _, scores in scored]).unflatten(1, grid)  # (B, h, w)
        size = tuple(features["pixels"].shape[2:])
        anomaly_map = gaussian_blur(to_pixels(patch_scores, size), self.blur_sigma)
        return Prediction(torch.stack([score for score, _ in scored]), anomaly_map)

    def _score_image(self, patches: Tensor, index: Any) -> tuple[Tensor, Tensor]:
        """The image score, from patch scores that no map has smoothed, and the (h*w,) patch scores."""
        rows = nearest(index, patches)[:, 0]
        scores = distances(patches, self.memory_bank[rows])
        worst = scores.argmax()
        return self._reweighted(patches[worst], rows[worst], scores[worst]), scores

    def _reweighted(self, patch: Tensor, row: Tensor, distance: Tensor) -> Tensor:
        """Equation 7: p* is `patch`, m* is `row`. The neighbours are those of m*, the distances to them are taken from p*."""
        hood = self.neighbours[row]
        if len(hood) == 1:
            return distance
        to_hood = distances(patch, self.memory_bank[hood])
        return (1 - (distance - to_hood.logsumexp(dim=0)).exp()) * distance

    @torch.no_grad()
    def _measure_search(self, batches: Batches, run: Run) -> None:
        """What the approximate search changes in the image scores of these images, relative to exact search."""
        exact, near = build_index(self.memory_bank), build_index(self.memory_bank, self.search)
        chosen = range(min(MEASURED_IMAGES, batches.samples))
        features = [batches.take([position]).features for position in chosen]
        truth = torch.cat([self._predict(image, exact).image_score for image in features])
        error = (torch.cat([self._predict(image, near).image_score for image in features]) - truth).abs() / truth.clamp(min=1e-12)
        self.search_error = torch.stack([error.mean(), error.max()])
        mean, largest = self.search_error.tolist()
        run.history.append({"search": self.search, "score_error_mean": mean, "score_error_max": largest, "images": len(chosen)})
        run.say(f"{self.search} search changes image scores by {mean:.2%} on average, {largest:.2%} at most ({len(chosen)} images)")

    def _load_from_state_dict(self, *args: Any) -> None:
        self._index = None
        super()._load_from_state_dict(*args)
