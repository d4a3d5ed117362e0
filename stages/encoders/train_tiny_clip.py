"""Train a small CLIP from nothing on pictures of `parts` and sentences about them, in minutes on a CPU: the recipe of the weights `tiny-clip`.

Every part is drawn twice, good and damaged, and nothing but the damage differs. The image and its windows are brought nearer to one of two sentences, one
that calls the object good and one that calls it damaged, in the words of WinCLIP's ensemble; half of the time the object has a made-up name, so
that what is said of its state does not hang on what it is. The category that is left out is never drawn: on it the network can be judged without having seen
a picture or read a word of it. Only the transformers are trained; the convolutions of the image tower are those of the built-in EfficientNet-Lite0.

It is no CLIP of the literature and stands for none. It is there to show the whole way from sentences to verdicts on real learnt weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages import engine
from stages.datasets.images import resize_image
from stages.encoders import pretraining
from stages.encoders.clip import Text, Vision, architecture, whole_network
from stages.encoders.clip_stem import LAYERS, Stem
from stages.encoders.cnn import CNN
from stages.encoders.pretraining import Outcome
from stages.params import ParamsError, nearest
from stages.training import Plan
from stages.types import Batch

NAME = "tiny-clip"
GOOD = ("{}", "flawless {}", "perfect {}", "unblemished {}", "{} without flaw", "{} without defect", "{} without damage")
BAD = ("damaged {}", "cracked {}", "{} with flaw", "{} with defect", "{} with damage")
PHOTOS = ("a photo of the {}.", "a photo of a {}.", "a close-up photo of the {}.", "a bright photo of a {}.", "a photo of a {} for visual inspection.")
SIDES = (2, 3)  # of the windows that are learnt from, in patches
MARKED = 24  # pixels of damage from which on a window counts as damaged
TEMPERATURE = 0.07


class Pairs:
    """Implements stages.types.Batches over what the stem sees of pairs: "good" and "bad" (B, C, h, w), "marked" (B, h, w) damaged pixels of a patch."""

    def __init__(self, features: dict[str, Tensor], categories: list[str], batch_size: int) -> None:
        self.features, self.categories, self.batch_size, self.samples = features, categories, batch_size, len(categories)

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, self.samples, self.batch_size):
            yield self.take(list(range(first, min(first + self.batch_size, self.samples))))

    def take(self, positions: list[int]) -> Batch:
        features = {name: value[positions] for name, value in self.features.items()}
        categories = [self.categories[position] for position in positions]
        return Batch(features, torch.zeros(len(positions), dtype=torch.int64), None, [str(position) for position in positions], categories)


def make(
    folder: Path,
    *,
    leave_out: str = "weave",
    pairs: int = 120,
    steps: int = 120,
    batch_size: int = 48,
    learning_rate: float = 1e-3,
    seed: int = 0,
    device: str = "auto",
) -> Outcome:
    """Draw, train, and put the weights `tiny-clip` into `folder`. pairs: of each category that is not left out; a tenth of them is measured on.

    Raises ParamsError for an unknown category, UserError where it tells held-out pairs apart no better than a coin.
    """
    from stages.datasets.scenes.picture import SCENES

    if leave_out not in SCENES:
        raise ParamsError(f"parts has no category {leave_out!r}{nearest(leave_out, SCENES)}")
    categories = [category for category in sorted(SCENES) if category != leave_out]
    about: dict[str, Any] = {"network": NAME, "categories": categories, "left_out": leave_out, "pairs": pairs}
    about |= {"batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
    run = pretraining.run_of(NAME, {**about, "steps": steps}, seed, device)
    network, _ = whole_network(NAME, "random", seed, folder)
    network.visual.conv1.cnn = CNN(backbone="tf_efficientnet_lite0", layers=LAYERS, weights="efficientnet-lite0", backbones=folder)
    train, held_out = _drawn(network.visual.conv1, categories, pairs, seed, batch_size)
    learner = Learner(network).to(run.device)
    plan = Plan(
        optimiser=partial(torch.optim.AdamW, lr=learning_rate, weight_decay=0.05),
        epochs=steps,
        steps=steps,
        batch_size=batch_size,
        schedule=lambda step, total: min(1.0, (step + 1) / 20) * (1 - step / total),
        watch="held_out_loss",
        every=max(1, steps // 8),
    )
    measure = partial(_measured, learner, held_out, seed)
    kept = run.train(learner, train, learner.loss, plan, measure)
    outcome = {"images": 2 * train.samples, "held_out": 2 * held_out.samples, "steps": kept, "loss": measure()["held_out_loss"], "constant": float(np.log(2))}
    return pretraining.store(NAME, network, about, outcome, folder, run)


class Learner(nn.Module):
    """Both towers, as their loss sees them; the stem's convolutions stay as they are."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.vision, self.text = Vision(network, ["image"], architecture(NAME)["vision_cfg"]["image_size"]), Text(network)
        self.requires_grad_(True)
        network.visual.conv1.cnn.requires_grad_(False)

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """How unlikely the right one of two sentences is, for whole images and for windows; half of the windows of a damaged part show the damage."""
        good, bad = (self.vision.network.conv1.tokens(batch.features[name]) for name in ("good", "bad"))
        marked, flips = batch.features["marked"], [axis for axis in (2, 3) if torch.rand(1, generator=generator) < 0.5]
        good, bad, marked = good.flip(flips), bad.flip(flips), marked.flip([axis - 1 for axis in flips])
        tokens = self.vision.placed(torch.cat([good, bad]))
        pixels = torch.cat([torch.zeros_like(marked), marked])
        said = self._sentences(batch.category, generator)
        losses = [self._told_apart(self.vision._blocks(tokens)[:, 0], said, pixels.sum(dim=(1, 2)))]
        for side in SIDES:
            inside = F.avg_pool2d(pixels[:, None], side, 1)[:, 0].flatten(1) * side**2  # (2 B, windows)
            place = torch.multinomial((inside >= MARKED).float() + 0.05 * (inside == 0).float() + 1e-9, 1, generator=generator)[:, 0]
            seen = self.vision._blocks(self.vision.chosen(tokens, side, place))[:, 0]
            losses.append(self._told_apart(seen, said, inside.gather(1, place[:, None])[:, 0]))
        return torch.stack(losses).sum()

    def _told_apart(self, seen: Tensor, said: Tensor, pixels: Tensor) -> Tensor:
        """Cross-entropy over both sentences of each image, where it is clear which is right. said: (B, 2, D) for 2 B images."""
        cosines = torch.einsum("nd,ntd->nt", F.normalize(self.vision.project(seen), dim=1), said.repeat(2, 1, 1))
        clear = (pixels == 0) | (pixels >= MARKED)
        return F.cross_entropy(cosines[clear] / TEMPERATURE, (pixels[clear] > 0).long())

    def _sentences(self, categories: Sequence[str], generator: torch.Generator) -> Tensor:
        """(B, 2, D) of length 1: what is said of each part if it is good, and if it is damaged."""

        def one(options: Sequence[str]) -> str:
            return options[int(torch.randint(len(options), (1,), generator=generator))]

        spoken = []
        for category in categories:
            name = category if torch.rand(1, generator=generator) < 0.5 else "".join(one("abcdefghijklmnoprstuvw") for _ in range(4))
            photo = one(PHOTOS)
            spoken += [photo.format(one(states).format(name)) for states in (GOOD, BAD)]
        tokens = self.text.tokens(spoken).to(self.text.positions.device)
        end = tokens.argmax(dim=1)
        read = self.text.read(self.text.token_embedding(tokens[:, : end.max() + 1]), end)  # what stands behind an end is never heard
        return F.normalize(read, dim=1).unflatten(0, (-1, 2))


def _drawn(stem: Stem, categories: list[str], pairs: int, seed: int, batch_size: int) -> tuple[Pairs, Pairs]:
    """What the stem sees of all pairs, its channels' centre and spread set by the good ones; the last tenth of each category is held out."""
    units = [engine.Unit(category, {"category": category, "seed": seed, "count": pairs}) for category in categories]
    outcomes = engine.run(_draw, units, processes=2, threads=1)
    if engine.exit_code(NAME, outcomes):
        raise RuntimeError("the pictures could not be drawn; the reason is above")
    drawn = {name: torch.from_numpy(np.concatenate([outcome.value[name] for outcome in outcomes])) for name in ("good", "bad", "marked")}
    seen = {name: torch.cat([stem.see(part.permute(0, 3, 1, 2)) for part in drawn[name].split(16)]) for name in ("good", "bad")}
    stem.centre.copy_(seen["good"].mean(dim=(0, 2, 3)))
    stem.spread.copy_(seen["good"].std(dim=(0, 2, 3)).clamp(min=1e-3))
    features = {**seen, "marked": drawn["marked"]}
    last = torch.arange(len(categories) * pairs) % pairs >= pairs - max(1, pairs // 10)
    names = [category for category in categories for _ in range(pairs)]
    parts = [torch.nonzero(which)[:, 0].tolist() for which in (~last, last)]
    train, held_out = (Pairs({name: value[part] for name, value in features.items()}, [names[p] for p in part], batch_size) for part in parts)
    return train, held_out


def _draw(category: str, seed: int, count: int) -> dict[str, np.ndarray]:
    """Pictures at the size of the network, and how many of its pixels are damaged in each patch."""
    from stages.datasets.scenes.pairs import draw_pair

    size = architecture(NAME)["vision_cfg"]["image_size"]
    patch = architecture(NAME)["vision_cfg"]["patch_size"]
    drawn = [draw_pair(category, seed, index) for index in range(count)]
    masks = torch.from_numpy(np.stack([bad.mask for _, bad in drawn]))[:, None].float()
    marked = F.avg_pool2d(F.interpolate(masks, (size, size), mode="area"), patch)[:, 0] * patch**2
    good, bad = (np.stack([resize_image(pair[which].image, size) for pair in drawn]) for which in (0, 1))
    return {"good": good, "bad": bad, "marked": marked.round().numpy()}


@torch.no_grad()
def _measured(learner: Learner, held_out: Pairs, seed: int) -> dict[str, float]:
    """The mean loss of a decision on pairs that were not learnt from, with the same draws every time."""
    losses = [float(learner.loss(batch, torch.Generator().manual_seed(seed))) / (1 + len(SIDES)) for batch in held_out]
    return {"held_out_loss": float(np.mean(losses))}
