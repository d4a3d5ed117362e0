"""One encoder, two decoders: the teacher redraws what is hidden, the shallow student imitates the teacher.

After Ristea et al., "Self-Distilled Masked Auto-Encoders are Efficient Video Anomaly Detectors", CVPR 2024, arXiv:2306.12041, for windows of a
signal instead of frames.

Deviations from that paper:
- Tokens are patches of time steps, all variables together; plain pre-norm transformer layers with fixed sine and cosine positions and no class token.
- The student is a decoder of its own of `student_layers`. With `shared_layers` it follows that many layers of the teacher, as in the paper, whose
  gradients it does not touch.
- Masking by variable (`by_variable`) hides values, not tokens: hidden values become 0, the mean of the training data, and each token is told which
  variables of its patch are hidden. Hiding a whole token for any hidden variable would hide nearly all of them.
- GroupNorm in the convolutions, so that a window's output depends on that window alone; `norm="batch"` is there to compare.

B batch, T steps of a window, V variables, N patches of P steps, D width.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PatchifyMode = Literal["linear", "cnn_first", "patch_cnn"]
CHANNELS = 32  # after the first of the two convolutions


class Shape(NamedTuple):
    """The sizes of a network and the choices that change its layers."""

    steps: int = 100  # T
    variables: int = 8  # V
    patches: int = 25  # N
    width: int = 64  # D
    heads: int = 4
    encoder_layers: int = 3
    teacher_layers: int = 4
    student_layers: int = 1
    feedforward: int = 256
    dropout: float = 0.1
    patchify: PatchifyMode = "linear"
    by_variable: bool = False
    mask_before: bool = False  # mask tokens enter the encoder; otherwise it sees visible patches alone
    norm: Literal["group", "batch"] = "group"
    leak_guard: bool = True  # hide values before a convolution that reaches over the borders of patches
    shared_layers: int = 0
    shared_mask_token: bool = False

    def check(self) -> None:
        """Raises ValueError where the sizes do not fit each other."""
        if self.patches < 2 or self.steps % self.patches:
            raise ValueError(f"num_patches must be at least 2 and divide seq_length = {self.steps}, got {self.patches}")
        if self.width % self.heads:
            raise ValueError(f"nhead must divide d_model = {self.width}, got {self.heads}")
        if not 0 <= self.shared_layers <= self.teacher_layers:
            raise ValueError(f"shared_decoder_layers must be in 0..{self.teacher_layers} (the teacher's layers), got {self.shared_layers}")


class MAEOutput(NamedTuple):
    teacher: Tensor  # (B, T, V)
    student: Tensor  # (B, T, V)
    mask: Tensor  # (B, T) bool, or (B, T, V) where masking is by variable; True is masked
    latent: Tensor  # (B, N, D), what the teacher's decoder starts from, without positions


class Network(nn.Module):
    """`forward` takes its masks as arguments: nothing of a call stays behind."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        shape.check()
        self.shape, self.patch_size = shape, shape.steps // shape.patches
        self.embed = Embedding(shape)
        self.register_buffer("positions", sinusoids(shape.patches, shape.width), persistent=False)
        self.encoder = _layers(shape, shape.encoder_layers)
        self.encoder_norm = nn.LayerNorm(shape.width)
        self.teacher = _layers(shape, shape.teacher_layers)
        self.student = _layers(shape, shape.student_layers)
        self.teacher_head = _head(shape, self.patch_size)
        self.student_head = _head(shape, self.patch_size)
        self.mask_token = nn.Parameter(0.02 * torch.randn(shape.width))
        separate = not (shape.shared_mask_token or shape.mask_before or shape.by_variable)
        self.student_mask_token = nn.Parameter(0.02 * torch.randn(shape.width)) if separate else None

    def forward(
        self, window: Tensor, mask: Tensor | None = None, generator: torch.Generator | None = None, ratio: float = 0.4
    ) -> MAEOutput:
        """window: (B, T, V) standardised. mask: (B, N) bool with as many masked patches in every row, drawn with `ratio` if None.

        Masking by variable: (B, N, V), or (B, N) for all variables of a patch, and any number in a row.
        """
        if mask is None:
            mask = self.drawn_mask(len(window), ratio, generator).to(window.device)
        if self.shape.by_variable and mask.ndim == 2:
            mask = mask[..., None].expand(-1, -1, self.shape.variables)
        latent, student_latent = self.encode(window, mask)
        teacher, student = self.decode(latent, student_latent)
        return MAEOutput(teacher, student, mask.repeat_interleave(self.patch_size, dim=1), latent)

    def drawn_mask(self, batch: int, ratio: float, generator: torch.Generator | None = None) -> Tensor:
        from stages.timeseries.masked import masks

        if self.shape.by_variable:
            return masks.drawn_by_variable(batch, self.shape.patches, self.shape.variables, ratio, generator)
        return masks.drawn(batch, self.shape.patches, ratio, generator)

    def encode(self, window: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """What the teacher and the student start from, (B, N, D) each."""
        tokens = self.embed(window, mask)
        if self.shape.by_variable:
            latent = self._encoded(tokens + self.positions)
            return latent, latent
        if self.shape.mask_before:
            hidden = torch.where(mask[..., None], self.mask_token, tokens)
            latent = self._encoded(hidden + self.positions)
            return latent, latent
        return self._encode_visible(tokens + self.positions, mask)

    def _encode_visible(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if not torch.jit.is_tracing() and (mask.sum(1) != mask[0].sum()).any():
            raise ValueError(
                f"every window of a batch must hide as many patches, got {sorted(set(mask.sum(1).tolist()))}; split the batch by count"
            )
        place = (~mask).nonzero()[:, 1].reshape(mask.shape[0], -1)  # visible patches, in their order
        place = place[..., None].expand(-1, -1, self.shape.width)
        seen = self._encoded(tokens.gather(1, place))
        latents = [
            token.expand_as(tokens).scatter(1, place, seen) for token in (self.mask_token, self.student_mask_token) if token is not None
        ]
        return latents[0], latents[-1]

    def _encoded(self, tokens: Tensor) -> Tensor:
        for layer in self.encoder:
            tokens = layer(tokens)
        return self.encoder_norm(tokens)

    def decode(self, latent: Tensor, student_latent: Tensor) -> tuple[Tensor, Tensor]:
        """Both redrawn windows, (B, T, V)."""
        teacher, student = latent + self.positions, student_latent + self.positions
        for number, layer in enumerate(self.teacher, start=1):
            teacher = layer(teacher)
            if number == self.shape.shared_layers:
                student = teacher.detach()
        for layer in self.student:
            student = layer(student)
        return self._drawn(self.teacher_head(teacher)), self._drawn(self.student_head(student))

    def _drawn(self, patches: Tensor) -> Tensor:
        return patches.unflatten(2, (self.patch_size, self.shape.variables)).flatten(1, 2)


class Embedding(nn.Module):
    """(B, T, V) to one token a patch, (B, N, D). linear: a matrix; patch_cnn: two convolutions inside each patch; cnn_first: the same two over the
    whole window, whose reach of two steps lets a patch see into its neighbours unless `leak_guard` hides the masked values first."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape, self.patch_size = shape, shape.steps // shape.patches
        channels = shape.variables * (2 if shape.by_variable else 1)  # values, and which of them are hidden
        if shape.patchify == "linear":
            told = shape.variables if shape.by_variable else 0
            self.project = nn.Linear(self.patch_size * shape.variables + told, shape.width)
        else:
            self.convolve = _convolutions(channels, shape)
            self.project = nn.Linear(self.patch_size * shape.width, shape.width) if shape.patchify == "cnn_first" else nn.Identity()

    def forward(self, window: Tensor, mask: Tensor) -> Tensor:
        if self.shape.by_variable or (self.shape.patchify == "cnn_first" and self.shape.leak_guard):
            hidden = mask if mask.ndim == 3 else mask[..., None]
            window = window.masked_fill(hidden.repeat_interleave(self.patch_size, dim=1), 0.0)
        if self.shape.patchify == "linear":
            patches = window.unflatten(1, (self.shape.patches, self.patch_size)).flatten(2)
            return self.project(torch.cat([patches, mask.to(patches)], dim=2) if self.shape.by_variable else patches)
        if self.shape.by_variable:
            window = torch.cat([window, mask.to(window).repeat_interleave(self.patch_size, dim=1)], dim=2)
        return self._whole(window) if self.shape.patchify == "cnn_first" else self._by_patch(window)

    def _whole(self, window: Tensor) -> Tensor:
        seen = self.convolve(window.transpose(1, 2)).transpose(1, 2)  # (B, T, D)
        return self.project(seen.unflatten(1, (self.shape.patches, self.patch_size)).flatten(2))

    def _by_patch(self, window: Tensor) -> Tensor:
        patches = window.unflatten(1, (self.shape.patches, self.patch_size)).flatten(0, 1)  # (B*N, P, V)
        return self.convolve(patches.transpose(1, 2)).mean(2).unflatten(0, (-1, self.shape.patches))


class Layer(nn.Module):
    """Pre-norm self-attention and feed-forward."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.attention_norm, self.feedforward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, feedforward), nn.Linear(feedforward, width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self._dropped(self.out(self._attended(self.attention_norm(tokens))))
        return tokens + self._dropped(self.narrow(self._dropped(F.gelu(self.widen(self.feedforward_norm(tokens))))))

    def _attended(self, tokens: Tensor) -> Tensor:
        query, key, value = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, heads, N, D / heads)
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=self.dropout if self.training else 0.0)
        return attended.transpose(1, 2).flatten(2)

    def _dropped(self, tokens: Tensor) -> Tensor:
        return F.dropout(tokens, self.dropout, self.training)


def sinusoids(patches: int, width: int) -> Tensor:
    """(N, D): sines in the even columns, cosines in the odd ones, wavelengths from 2 pi to 10,000 * 2 pi patches."""
    rate = torch.exp(-math.log(10_000) * torch.arange(0, width, 2) / width)
    angle = torch.arange(patches)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)[:, :width]


def _layers(shape: Shape, count: int) -> nn.ModuleList:
    return nn.ModuleList(Layer(shape.width, shape.heads, shape.feedforward, shape.dropout) for _ in range(count))


def _head(shape: Shape, patch_size: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(shape.width), nn.Linear(shape.width, patch_size * shape.variables))


def _convolutions(channels: int, shape: Shape) -> nn.Sequential:
    def norm(size: int) -> nn.Module:
        return nn.BatchNorm1d(size) if shape.norm == "batch" else nn.GroupNorm(1, size)

    first, second = nn.Conv1d(channels, CHANNELS, 3, padding=1), nn.Conv1d(CHANNELS, shape.width, 3, padding=1)
    return nn.Sequential(first, norm(CHANNELS), nn.ReLU(), second, norm(shape.width), nn.ReLU())
