"""AF-CLIP: a patch is as anomalous as an adapted CLIP finds it like "with defect." and unlike "without defect."; the adaptor has learnt that on
images of other objects, and nothing is trained on the objects that are judged.

Tokens of four depths, each patch also as the mean of its 3 x 3 and 5 x 5 neighbourhood, go through one small attention layer and CLIP's own projection;
what all of these sets say is added up before the softmax. With k normal images the cosine distance to their nearest patch leads, and the adaptor's word
counts a tenth. Fang et al., "AF-CLIP: Zero-Shot Anomaly Detection via Anomaly-Focused CLIP Adaptation", ACM MM 2025, arXiv:2507.19949. miniCLIP is the
same on a TinyCLIP (arXiv:2309.12314): `layers` by depth, block2, 5, 8 and 11 of 12 or block1, 4, 7 and 9 of 10.

The adaptor, the learnt words and CLIP's projection come as weights, made once by `assay train-afclip` (maths/afclip_training.py) from the test images and
masks of another data set, which is how the field trains and compares these models. A checkpoint is refused on the data set that it was made from, and
on another CLIP than its own.

Deviations and readings of the paper:
- Of TinyCLIPs 256 wide the attention has 4 heads, and an r above two thirds of the grid is left out (maths/afclip_adaptor.py).
- Reference images are the project's own draw by seed, the same for every model, and not five random draws.
- `checkpoint: random` is an adaptor with seeded random values, for trying a pipeline with k images; its word about an image means nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from stages import io
from stages.detectors.maps import gaussian_blur, to_pixels
from stages.detectors.zero_shot.maths.afclip_adaptor import SENTENCES, Alignment, as_tokens, neighbourhoods, with_class_tokens
from stages.encoders import weights
from stages.types import Batches, Detector, Features, Need, Prediction, Refusal

if TYPE_CHECKING:
    from stages.training import Run

SAME = 1e-3  # by how much a coordinate of a sentence's unit vector may differ between machines


class AFCLIP(Detector):
    """checkpoint: local weights that `assay train-afclip` made, or "random". The default is VisA's: its licence (CC BY 4.0) lets anybody use them; of VisA
    itself judge with another. radii: sides r of the neighbourhoods, odd. sigma: of their Gaussian, in patches. temperature: of the softmax over
    both sentences. alpha: weight of the adaptor's word where there are reference images. blur_sigma: in pixels of the map."""

    zero_shot = True

    def __init__(
        self,
        *,
        layers: tuple[str, ...] = ("block5", "block11", "block17", "block23"),
        checkpoint: str = "afclip-visa",
        radii: tuple[int, ...] = (1, 3, 5),
        sigma: float = 4.0,
        temperature: float = 0.07,
        alpha: float = 0.1,
        blur_sigma: float = 4.0,
    ) -> None:
        super().__init__()
        if 1 not in radii or any(radius % 2 == 0 or radius < 1 for radius in radii):
            raise ValueError(f"radii must be odd and 1 among them, got {tuple(radii)}")
        if min(sigma, temperature) <= 0:
            raise ValueError(f"sigma and temperature must be positive, got {sigma} and {temperature}")
        self.needs = Need(layers=with_class_tokens(layers))
        self.layers, self.checkpoint, self.radii = tuple(layers), checkpoint, tuple(radii)
        self.sigma, self.temperature, self.alpha, self.blur_sigma = sigma, temperature, alpha, blur_sigma
        self.alignment = Alignment(1, 1)  # takes the size of what is loaded
        self.register_buffer("sentences", torch.empty(0, 0))  # (2, D) of length 1: good, bad
        for layer in self.layers:
            self.register_buffer(f"references_{layer}", torch.empty(0, 0, 0, 0))  # (k, C, h, w), as CLIP gives them
        self._banks: dict[tuple[str, int], Tensor] = {}

    @property
    def reads(self) -> dict[str, Any]:
        """How tokens become logits, which must be the same in training and here."""
        return {"layers": list(self.layers), "radii": list(self.radii), "sigma": self.sigma, "temperature": self.temperature}

    def fit(self, train: Batches, val: Batches | None, run: Run) -> Self:
        """Takes up the checkpoint and keeps what CLIP says of the images of `train`, of which there may be none. Learns nothing."""
        seen = [batch.features for batch in train] if train.samples else []
        if self.checkpoint == weights.RANDOM:
            self._make_up(seen)
        else:
            self._take_up(run)
        for layer in self.layers:
            kept = torch.cat([features[layer].float() for features in seen]) if seen else torch.empty(0, 0, 0, 0)
            if seen and kept.shape[1] != len(self.alignment.projection):
                raise Refusal(
                    f"{self.checkpoint} is for tokens of width {len(self.alignment.projection)}, {layer} has {kept.shape[1]}: it belongs to "
                    f"another backbone"
                )
            setattr(self, f"references_{layer}", kept.to(run.device))
        self._banks = {}
        run.history.append({"images": train.samples, "checkpoint": self.checkpoint, **run.learnt_from})
        return self.to(run.device).eval()

    @torch.no_grad()
    def score(self, features: Features) -> Prediction:
        """One image at a time, so that a score cannot depend on its company through rounding."""
        self.require_fitted(self.sentences)
        seen = {layer: features[layer].to(self.sentences.device) for layer in self.needs.layers}
        if (width := seen[self.layers[0]].shape[1]) != len(self.alignment.projection):
            raise ValueError(f"AF-CLIP knows tokens of width {len(self.alignment.projection)}, these have {width}; give it its own encoder")
        images = [self._score({layer: value[place, None] for layer, value in seen.items()}) for place in range(len(features["pixels"]))]
        maps = to_pixels(torch.stack([one for _, one in images]), tuple(features["pixels"].shape[2:]))
        return Prediction(torch.stack([score for score, _ in images]), gaussian_blur(maps, self.blur_sigma))

    def _score(self, image: Features) -> tuple[Tensor, Tensor]:
        """The score and the (h, w) map of one image, whose layers are (1, C, h, w)."""
        sets = list(neighbourhoods(image, self.layers, self.radii, self.sigma))
        whole, patches = self._anomalous(image, sets)
        if not len(getattr(self, f"references_{self.layers[0]}")):
            return whole, patches
        memory = torch.stack([self._distance(*one) for one in sets]).mean(dim=0)
        return memory.max() + self.alpha * whole, memory + self.alpha * patches

    def _anomalous(self, image: Features, sets: list[tuple[str, int, Tensor]]) -> tuple[Tensor, Tensor]:
        """In 0..1, what the sentences say of the image (a scalar) and of its patches (h, w); the sets' logits are added, not their probabilities."""
        logits = torch.zeros((), device=self.sentences.device)
        for layer, _, maps in sets:
            vectors = self.alignment(as_tokens(maps, image[f"{layer}_extra"]))
            logits = logits + vectors[0] @ self.sentences.T / self.temperature  # (1 + h*w, 2)
        probability = logits.softmax(dim=1)[:, 1]
        return probability[0], probability[1:].unflatten(0, sets[0][2].shape[2:])

    def _distance(self, layer: str, radius: int, maps: Tensor) -> Tensor:
        """(h, w) in 0..1: half the cosine distance to the nearest reference patch of the same layer and neighbourhood."""
        nearest = (unit_rows(maps) @ self._bank(layer, radius).T).amax(dim=1)
        return ((1 - nearest) / 2).clamp(min=0).unflatten(0, maps.shape[2:])

    def _bank(self, layer: str, radius: int) -> Tensor:
        """(k*h*w, C) of length 1, made when it is first needed; the state keeps only what it is made of."""
        bank = self._banks.get((layer, radius))
        if bank is None or bank.device != self.sentences.device:
            references = {layer: getattr(self, f"references_{layer}")}
            for _, own, maps in neighbourhoods(references, (layer,), self.radii, self.sigma):
                self._banks[layer, own] = unit_rows(maps)
        return self._banks[layer, radius]

    def _take_up(self, run: Run) -> None:
        """Adaptor and sentences of the checkpoint, once it is sure that they are of this encoder and not of the images to be judged."""
        try:
            found = weights.resolve(self.checkpoint, run.backbones)
        except weights.WeightsMissing as reason:
            raise Refusal(str(reason)) from reason
        state, about = io.read_model(found.path), weights.described(found)
        own = {name.removeprefix("alignment."): value for name, value in state.items() if name.startswith("alignment.")}
        if not {"projection"} <= set(own) or "reads" not in about:
            raise weights.WeightsAltered(f"{found.path} is no checkpoint that `assay train-afclip` wrote: make {self.checkpoint} again")
        self._require_own(about, run)
        self._require_same_network(state["plain_sentences"], about, run)
        self.alignment = Alignment(*own["projection"].shape)
        self.alignment.load_state_dict(own)
        self.sentences = state["sentences"]
        dataset = about["auxiliary"]["dataset"]
        run.learnt_from["afclip"] = f"the test images and masks of {dataset} (checkpoint {self.checkpoint}, sha256 {found.sha256[:12]})"

    def _require_own(self, about: dict[str, Any], run: Run) -> None:
        """That the checkpoint reads tokens as this model does, and has not seen what it is to judge."""
        for key, value in self.reads.items():
            if about["reads"][key] != value:
                raise Refusal(f"{self.checkpoint} was trained with {key} {about['reads'][key]}, this model has {value}: give it the same")
        if run.dataset and run.dataset == about["auxiliary"]["dataset"]:
            raise Refusal(
                f"{self.checkpoint} was trained on the test images of {run.dataset} and cannot be judged on them. Train one on another data set: "
                "`assay train-afclip OTHER --encoder NAME`, and name it in `checkpoint`"
            )

    def _require_same_network(self, plain: Tensor, about: dict[str, Any], run: Run) -> None:
        """By what the text tower says of both sentences without learnt words: another tower, or other weights, says something else."""
        if run.text is None:
            raise Refusal("AF-CLIP compares images with sentences, and its encoder reads none: pair it with an encoder of kind clip")
        read = F.normalize(run.text(SENTENCES).float().cpu(), dim=1)
        if read.shape != plain.shape or (read - plain).abs().max() > SAME:
            made = about["encoder"]
            raise Refusal(
                f"{self.checkpoint} was trained on the backbone {made['backbone']} with the weights {made['weights']['name']}, and the encoder here "
                "is another one: pair it with that, or train a checkpoint on this one with `assay train-afclip`"
            )

    def _make_up(self, seen: list[Features]) -> None:
        """An untrained adaptor for tokens as wide as those of the images."""
        if not seen:
            raise Refusal(
                "checkpoint random knows nothing, and without an image not even how wide tokens are: give `shots` or a checkpoint"
            )
        width = seen[0][self.layers[0]].shape[1]
        self.alignment = Alignment(width, width)
        self.sentences = F.normalize(torch.randn(2, width, generator=torch.Generator().manual_seed(0)), dim=1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        stored = state_dict.get(f"{prefix}alignment.projection")
        if stored is not None:
            self.alignment = Alignment(*stored.shape).to(self.sentences.device)
        self._banks = {}
        super()._load_from_state_dict(state_dict, prefix, *args)


def unit_rows(maps: Tensor) -> Tensor:
    """(B, C, h, w) to (B*h*w, C), each of length 1."""
    return F.normalize(maps.transpose(0, 1).flatten(1).T, dim=1)
