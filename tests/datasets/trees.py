"""Small trees of pictures that tests build: no two pictures alike, so that only planted copies are copies."""

from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 96


def texture(number: int, side: int = SIDE) -> np.ndarray:
    """(side, side, 3) uint8: noise at three scales, as natural surfaces have it, of its own for each number."""
    generator = np.random.default_rng(number)
    layers = (generator.integers(0, 256, (cells, cells, 3), dtype=np.uint8) for cells in (side // 16, side // 8, side // 4))
    scaled = [np.asarray(Image.fromarray(layer).resize((side, side), Image.Resampling.BICUBIC), dtype=int) for layer in layers]
    return (sum(scaled) // 3).astype(np.uint8)


class Tree:
    """Writes pictures and masks below a root; each picture is new."""

    def __init__(self, root: Path, side: int = SIDE) -> None:
        self.root, self.side, self.number = root, side, 0

    def image(self, name: str, pixels: np.ndarray | None = None, **options) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.number += 1
        Image.fromarray(texture(self.number, self.side) if pixels is None else pixels).save(path, **options)
        return path

    def images(self, pattern: str, count: int) -> None:
        for number in range(count):
            self.image(pattern.format(number))

    def mask(self, name: str, value: int = 255, shape: tuple[int, int] | None = None) -> Path:
        pixels = np.zeros(shape or (self.side, self.side), dtype=np.uint8)
        pixels[4:12, 4:12] = value
        return self.image(name, pixels)

    def file(self, name: str, content: bytes = b"not an image") -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path


def mvtec_tree(root: Path, category: str = "bottle", train: int = 20) -> Tree:
    tree = Tree(root)
    tree.images(f"{category}/train/good/{{:03}}.png", train)
    tree.images(f"{category}/test/good/{{:03}}.png", 4)
    tree.images(f"{category}/test/crack/{{:03}}.png", 4)
    for number in range(4):
        tree.mask(f"{category}/ground_truth/crack/{number:03}_mask.png")
    return tree


def write_params(root: Path, **datasets: dict) -> None:
    """A params.yaml in `root` as the project's, with these data sets, a fixed split rule and no runs."""
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe")
    project = yaml.load(Path(__file__).parents[2] / "params.yaml")
    protocol = {**project["protocol"], "split_seed": 0, "val_fraction": 0.15, "test_fraction": 0.4}
    yaml.dump({**project, "datasets": datasets, "protocol": protocol, "extracts": {}, "runs": {}}, root / "params.yaml")
