"""Where the encoders of raw media looked in the photographs and the film of a weld, as PNG files.

Grad-CAM of the last convolution that keeps places. Of the twins and of vision transformers that is the first layer, of patches, so it tells which patches the
score hangs on and not what deeper layers made of them. Sound has no picture here.

B = 1 record, D channels, h w places.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from stages import io
from stages.errors import UserError
from stages.fusion.deep.maths.grad_cam import grad_cam
from stages.fusion.deep.maths.heads import log_odds
from stages.fusion.raw_media import encoded
from stages.plots.overlay import Scale, overlay
from stages.serving.weld_score import Scored

if TYPE_CHECKING:
    from stages.fusion.deep.maths.sota_model import QuadModalSOTAModel

GROWN = 3  # times that a picture is enlarged, so that its caption has room
FRAMES = 4  # of a film that are drawn, at equal distances
AXES = {"video": nn.Conv3d, "image": nn.Conv2d}
SPELT, WHAT = {"video": "video", "image": "post_images"}, {"video": "frame", "image": "view"}


def draw(found: Scored, folder: Path, worst: int) -> list[Path]:
    """Pictures of the welds with the highest scores. Raises UserError where neither encoder has a convolution."""
    layers = {name: layer for name in AXES if (layer := last_convolution(found.model.encoders[name].network, AXES[name])) is not None}
    if not layers:
        raise UserError("neither the encoder of film nor that of photographs has a convolution, and Grad-CAM needs one")
    place = {row.record_id: at for at, row in enumerate(found.files)}
    rows = sorted((row for row in found.rows if row["score"] is not None), key=lambda row: -row["score"])[:worst]
    written = []
    for number, row in enumerate(rows, 1):
        features = {name: value.to(next(found.model.parameters()).device) for name, value in found.source.take([place[row["record_id"]]]).features.items()}
        for name, layer in layers.items():
            known = features[f"mask.{SPELT[name]}"][0].nonzero()[:, 0].tolist()
            if known:
                shown = known if name == "image" else known[:: max(len(known) // FRAMES, 1)][:FRAMES]
                path = folder / f"{number}-{row['record_id']}-{name}.png"
                picture = sheet(features[f"media.{SPELT[name]}"][0], looked(found.model, layer, features, name), shown, WHAT[name], row["score"])
                io.write_bytes(path, picture)
                written.append(path)
    return written


def last_convolution(network: nn.Module, kind: type[nn.Module]) -> nn.Module | None:
    return next((layer for layer in reversed(list(network.modules())) if isinstance(layer, kind)), None)


def looked(model: QuadModalSOTAModel, layer: nn.Module, features: dict[str, Tensor], name: str) -> Tensor:
    """(places, h, w): of each view, or of each two frames of a film, how much each patch speaks for a fault, in units of the score."""
    asked = layer.weight.requires_grad
    layer.weight.requires_grad_(True)  # an encoder of which nothing learns keeps no graph
    try:
        heat = grad_cam(_Scorer(model, features), layer, features[f"media.{SPELT[name]}"], lambda score: score)
    finally:
        layer.weight.requires_grad_(asked)
    return heat[0] if name == "video" else heat


class _Scorer(nn.Module):
    """(1,) score of one weld; what `grad_cam` runs."""

    def __init__(self, model: QuadModalSOTAModel, features: dict[str, Tensor]) -> None:
        super().__init__()
        self.model, self.features = model, features

    def forward(self, _: Tensor) -> Tensor:
        network = self.model.network
        return log_odds(network(network.encoder.padded(encoded(self.model, self.features))).logits)


def sheet(media: Tensor, heat: Tensor, known: list[int], what: str, score: float) -> bytes:
    """A PNG, a row a picture: as it is, and with its map. media: (N, 1 or 3, H, W) uint8; heat: (n, h, w), n dividing N; known: places in N."""
    size = [GROWN * side for side in media.shape[2:]]
    step = -(-len(media) // len(heat))
    scale = Scale(0.0, max(float(heat.max()) / 2, 1e-12))
    panels = []
    for at in known:
        picture = F.interpolate(media[at : at + 1].float(), size)[0].expand(3, -1, -1).permute(1, 2, 0).byte().cpu().numpy()
        warm = F.interpolate(heat[at // step][None, None], size, mode="bilinear")[0, 0].cpu().numpy()
        panels.append(overlay(picture, warm, scale, None, f"{what} {at}, score {score:.2f}"))
    whole = Image.new("RGB", (panels[0].width, sum(panel.height for panel in panels)), "white")
    for number, panel in enumerate(panels):
        whole.paste(panel, (0, number * panels[0].height))
    content = BytesIO()
    whole.save(content, "PNG")
    return content.getvalue()
