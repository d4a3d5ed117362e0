"""Is this checkpoint really the CLIP that it is taken for? Photographs that come with scikit-image are classified by sentences, and the answers
must be right.

What this catches: tensors under the wrong names, a text tower of other weights, the wrong order of channels, missing positions. The activation
alone is a smaller mistake (QuickGELU or GELU, some points of accuracy), so both are tried: the one that the weights were trained with is surer of the
right answers.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.datasets.images import read_image, resize_image
from stages.encoders import weights as weight_files
from stages.encoders.clip import Text, Vision, architecture, whole_network
from stages.errors import Missing, UserError
from stages.params import ParamsError

SCALE = 100.0  # of the released checkpoints: how much surer one hundredth of a cosine makes
ENOUGH = 0.75  # share of right answers
PHOTOGRAPHS = {
    "astronaut.png": "a portrait of an astronaut",
    "brick.png": "a brick wall",
    "camera.png": "a man with a camera on a tripod",
    "chelsea.png": "a cat",
    "coffee.png": "a cup of coffee",
    "coins.png": "old coins",
    "grass.png": "grass",
    "gravel.png": "gravel",
    "hubble_deep_field.jpg": "galaxies in the night sky",
    "moon.png": "the surface of the moon",
    "motorcycle_left.png": "a motorcycle in a garage",
    "page.png": "a page of printed text",
    "retina.jpg": "the retina of an eye",
    "rocket.jpg": "the launch of a rocket",
}


class Answer(NamedTuple):
    photograph: str
    right: str
    given: str
    sure: float  # of the right one, 0..1


class Checked(NamedTuple):
    weights: str
    backbone: str
    answers: list[Answer]
    right: int
    other_activation: bool  # True: the answers are surer with the activation that the name of the backbone does not stand for


def check(name: str, folder: Path, backbone: str | None = None) -> Checked:
    """Classify the photographs with the weights `name`. backbone: that of the lock by default.

    Raises UserError where fewer than three in four answers are right, or where the other activation fits better.
    """
    backbone = backbone or weight_files.row_of(name).clip
    if backbone is None:
        raise ParamsError(f"the lock does not know which CLIP {name} is for: name it by --backbone, e.g. ViT-B-16-plus-240")
    quick = architecture(backbone).get("quick_gelu", False)
    likely, unlikely = (_answers(name, folder, backbone, activation) for activation in (quick, not quick))
    right = sum(answer.given == answer.right for answer in likely)
    checked = Checked(name, backbone, likely, right, _sureness(unlikely) > _sureness(likely))
    if right < ENOUGH * len(likely):
        wrong = next(answer for answer in likely if answer.given != answer.right)
        raise UserError(
            f"E103 {name} in {backbone}: {right} of {len(likely)} photographs are named rightly, at least {ENOUGH:.0%} must be. "
            f"{wrong.photograph}, which shows {wrong.right}, is taken for {wrong.given}. Is it the file of this network? Nothing that it says can be trusted"
        )
    if checked.other_activation:
        raise UserError(
            f"E104 {name} is surer of what photographs show with {'GELU' if quick else 'QuickGELU'} than with the activation of {backbone}: "
            f"set `quick_gelu: {str(not quick).lower()}` in the encoder's entry, or name the right backbone"
        )
    return checked


def photographs(size: int) -> Tensor:
    """(N, 3, size, size) uint8 in the order of PHOTOGRAPHS, resized whole. Raises Missing without scikit-image."""
    package = importlib.util.find_spec("skimage")
    if package is None:
        raise Missing("the photographs come with scikit-image, which is not installed: pip install 'assay[clip]'")
    folder = Path(package.submodule_search_locations[0], "data")
    images = [resize_image(read_image(folder / name), size) for name in PHOTOGRAPHS]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def _answers(name: str, folder: Path, backbone: str, quick_gelu: bool) -> list[Answer]:
    network, _ = whole_network(backbone, name, 0, folder, quick_gelu)
    size = architecture(backbone)["vision_cfg"]["image_size"]
    seen = F.normalize(Vision(network, ["image"], size)(photographs(size))["image"][:, :, 0, 0], dim=1)
    said = F.normalize(Text(network)([f"a photo of {what}." for what in PHOTOGRAPHS.values()]), dim=1)
    sure = (SCALE * seen @ said.T).softmax(dim=1)
    what = list(PHOTOGRAPHS.values())
    return [
        Answer(photograph, right, what[int(row.argmax())], float(row[place]))
        for place, ((photograph, right), row) in enumerate(zip(PHOTOGRAPHS.items(), sure, strict=True))
    ]


def _sureness(answers: list[Answer]) -> float:
    """Mean log-likelihood of the right answers."""
    return float(np.mean([np.log(max(answer.sure, 1e-12)) for answer in answers]))
