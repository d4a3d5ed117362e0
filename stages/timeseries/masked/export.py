"""The scorer of a window as an ONNX file, for runtimes without PyTorch: standardising, every pass and the score in one graph.

It judges windows, not series: cutting windows, averaging over them and the score mode "multiscale", which looks along a whole series, stay outside.
"""

from __future__ import annotations

import warnings
from io import BytesIO
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from stages.timeseries.masked import masks
from stages.timeseries.masked.scoring import components
from stages.types import NotFitted

if TYPE_CHECKING:
    from stages.timeseries.masked_autoencoder import MaskedAutoencoder

OPSET = 18
OUTPUTS = ("signed", "discrepancy", "score")


class WindowScorer(nn.Module):
    """(B, L, V) windows in the units of train, without gaps, to the errors of the steps that the passes hide, in order of the steps.

    signed: (B, H, V) true - redrawn. discrepancy: (B, H, V), squared. score: (B,), the mean over these steps in the detector's score mode; with
    "multiscale", which has no score of a window, as "fixed".
    """

    def __init__(self, detector: MaskedAutoencoder) -> None:
        super().__init__()
        if detector.network is None:
            raise NotFitted("MaskedAutoencoder has learnt nothing yet: fit or load it before it is exported")
        self.detector, self.masks = detector, _masks(detector)
        self.order = torch.cat([mask.repeat_interleave(detector.network.patch_size).nonzero()[:, 0] for mask in self.masks]).argsort()

    def forward(self, window: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        detector = self.detector
        values = detector.clipped((window - detector.centre) / detector.spread)
        parts = [self._errors(values, mask) for mask in self.masks]
        signed, discrepancy = (torch.cat(column, dim=1)[:, self.order] for column in zip(*parts, strict=True))
        found = components(signed.square().mean(1), discrepancy.mean(1))
        mode = "fixed" if detector.score_mode == "multiscale" else detector.score_mode
        return signed, discrepancy, detector.calibration.combined(found, mode, detector.weight)

    def _errors(self, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        output = self.detector.network(values, mask[None].expand(values.shape[0], -1))
        hidden = mask.repeat_interleave(self.detector.network.patch_size).nonzero()[:, 0]
        return (values - output.teacher)[:, hidden], (output.teacher - output.student)[:, hidden].square()


def export(detector: MaskedAutoencoder) -> bytes:
    """An ONNX file with the input `window` (B, L, V) float32, any B, and the outputs of WindowScorer."""
    file, shape = BytesIO(), detector.network.shape if detector.network else None
    scorer = WindowScorer(detector).eval()
    with warnings.catch_warnings():
        # The tracing exporter announces its retirement at each call, and tracing warns of sizes that are constant on purpose.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            scorer,
            (torch.zeros(2, shape.steps, shape.variables),),
            file,
            dynamo=False,
            opset_version=OPSET,
            input_names=["window"],
            output_names=list(OUTPUTS),
            dynamic_axes={name: {0: "B"} for name in ("window", *OUTPUTS)},
        )
    return file.getvalue()


def _masks(detector: MaskedAutoencoder) -> Tensor:
    """(K, N): what the detector's scoring hides of a window, pass by pass."""
    patches, count = detector.shape.patches, detector.hidden
    if detector.scoring == "last_patch":
        return masks.last(patches, detector.mask_last_n // detector.network.patch_size)
    if detector.scoring == "centre":
        return masks.middle(patches, count)[None]
    return masks.interleaved(patches, detector.passes)
