"""How AF-CLIP's adaptor and the words before its two sentences are learnt, from images with masks of other objects (arXiv:2507.19949).

Readings of the paper: N(0, 0.01) of the learnt vectors is a deviation of 0.01; masks are shrunk as torch does it without antialiasing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.detectors.zero_shot.maths.afclip_adaptor import SENTENCES, Alignment, as_tokens, neighbourhoods
from stages.detectors.zero_shot.maths.afclip_losses import focal, map_loss, on_grid, patch_alignment
from stages.seed import derive
from stages.types import Batch

if TYPE_CHECKING:
    from stages.encoders.clip import Text

VECTORS = 12
DEVIATION = 0.01


class Learner(nn.Module):
    """Everything that is trained. CLIP's norm and projection are there, frozen; the text tower only lends a hand and is no part of the state."""

    def __init__(
        self, visual: nn.Module, text: Text, *, layers: Sequence[str], radii: Sequence[int], sigma: float, temperature: float, seed: int
    ) -> None:
        """visual: open_clip's tower that sees. layers, radii, sigma, temperature: as the detector has them."""
        super().__init__()
        self.alignment = Alignment(*visual.proj.shape, derive(seed, "adaptor"))
        self.alignment.ln_post.load_state_dict(visual.ln_post.state_dict())
        self.alignment.projection.data.copy_(visual.proj)
        drawn = torch.randn(VECTORS, text.token_embedding.embedding_dim, generator=torch.Generator().manual_seed(derive(seed, "vectors")))
        self.vectors = nn.Parameter(DEVIATION * drawn)
        self.layers, self.radii, self.sigma, self.temperature = layers, radii, sigma, temperature
        self._text = [text]  # in a list: not to be registered

    @property
    def text(self) -> Text:
        return self._text[0]

    def sentences(self) -> Tensor:
        """(2, D) of length 1: good, bad, as they are read now."""
        return prompted(self.text, self.vectors)

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """The whole loss of a batch that has masks; each of the parts weighs 1. Draws nothing."""
        device, grid = self.vectors.device, tuple(batch.features[self.layers[0]].shape[2:])
        marked, sentences = on_grid(batch.mask.to(device), grid), self.sentences()
        logits, apart = [], []
        for layer, _, maps in neighbourhoods(batch.features, self.layers, self.radii, self.sigma):
            vectors = self.alignment(as_tokens(maps, batch.features[f"{layer}_extra"]))
            logits.append(vectors @ sentences.T / self.temperature)
            apart.append(patch_alignment(vectors[:, 1:], marked))
        total = torch.stack(logits).sum(dim=0)  # (B, 1 + h*w, 2)
        return focal(total[:, 0], batch.label.to(device) == 1) + map_loss(total[:, 1:], marked) + torch.stack(apart).mean()


def prompted(text: Text, vectors: Tensor) -> Tensor:
    """(2, D) of length 1 for (V, C) vectors that stand before the start token of both sentences; the end token, V places on, speaks for each."""
    tokens = text.tokens(SENTENCES).to(vectors.device)
    embedded = torch.cat([vectors.expand(len(tokens), -1, -1), text.token_embedding(tokens)], dim=1)[:, : text.context]
    return F.normalize(text.read(embedded, tokens.argmax(dim=1) + len(vectors)), dim=1)
