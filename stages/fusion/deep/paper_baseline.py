"""The baseline of the paper that published the welds: an autoencoder of the sound, one of the film, and a weighted sum of how badly both reconstruct.

Stemmer et al., "Unsupervised Welding Defect Detection Using Audio And Video", 2024, arXiv:2409.02290. Learnt from good welds alone.
The sound's autoencoder is a convolution along time, its score the mean error over time; the film's is fully connected, its score the
greatest of the moving means over two seconds. Both are standardised by the good welds of training and added as w * audio + (1 - w) * video; w is taken
from a grid of 0.01 by the AUROC on validation, and of several that are as good it is the one nearest to the paper's 0.37.

Deviations. It learns from the tokens that the project has stored: the sound's are log-mel patches and not 8,193 bins of a short-time Fourier
transform at 192 kHz; the film's are those of the encoder in its entry and not of SlowFast-R101. Without SlowFast its row must be
called "Paper-style (substitute video features)". Tokens are standardised before they are reconstructed. Of the sound's layers three share
one width. The momentum of Adam does not cycle with its rate. Where validation has not both labels, w is the paper's.
A weld that lacks the sound or the film is judged by the other.

B records, N tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from stages.datasets.records import Ragged, Records, RecordSet, batches
from stages.fusion.deep.maths.autoencoders import TimeAutoencoder, TokenAutoencoder, one_cycle
from stages.fusion.deep.maths.ragged import TokenSource, record_means, taken, worst_stretch
from stages.fusion.detector import RecordDetector
from stages.metrics.ranking import auroc
from stages.seed import derive
from stages.types import Batch, Refusal

if TYPE_CHECKING:
    from stages.training import Run

PAPER = 0.37  # weight of the sound
GRID = 101  # weights from 0 to 1


class PaperBaseline(RecordDetector):
    """audio, video: the names of the two modalities. audio_width, audio_code, video_widths: the sizes; the last of video_widths is the code.

    clock_s: the seconds that the time 0..1 of a film's tokens stands for; window_s: of the moving mean. audio_rate is the greatest of one cycle.
    epochs, steps (of each training): whichever ends first. patience: epochs without a lower error on good validation welds, of the film.
    """

    supervised = False

    def __init__(
        self,
        *,
        audio: str = "audio",
        video: str = "video",
        audio_width: int = 1024,
        audio_code: int = 48,
        video_widths: tuple[int, ...] = (512, 256, 128, 64, 64),
        dropout: float = 0.5,
        audio_rate: float = 1e-4,
        video_rate: float = 5e-4,
        audio_epochs: int = 50,
        video_epochs: int = 1000,
        steps: int | None = None,
        batch_size: int = 16,
        patience: int = 50,
        clock_s: float = 30.0,
        window_s: float = 2.0,
    ) -> None:
        if audio == video:
            raise ValueError(f"audio and video must be two modalities, both are {audio!r}")
        if not video_widths or min(audio_width, audio_code, *video_widths) < 1:
            raise ValueError(f"widths must be at least 1, got {audio_width}, {audio_code} and {list(video_widths)}")
        if not 0 <= dropout < 1 or min(clock_s, window_s) <= 0:
            raise ValueError(f"dropout must be in 0..1, 1 left out, and clock_s and window_s above 0, got {dropout}, {clock_s} and {window_s}")
        super().__init__()
        self.audio, self.video = audio, video
        self.audio_width, self.audio_code, self.video_widths, self.dropout = audio_width, audio_code, tuple(video_widths), dropout
        self.audio_rate, self.video_rate, self.audio_epochs, self.video_epochs = audio_rate, video_rate, audio_epochs, video_epochs
        self.step_limit, self.batch_size, self.patience = steps, batch_size, patience
        self.window = window_s / clock_s
        self.register_buffer("centre", torch.zeros(2, dtype=torch.float64))  # of the raw scores of good training welds: sound, film
        self.register_buffer("scale", torch.ones(2, dtype=torch.float64))
        self.register_buffer("weight", torch.full((), PAPER, dtype=torch.float64))

    def prepare(self, widths: dict[str, int], seed: int) -> None:
        if missing := [name for name in (self.audio, self.video) if name not in widths]:
            raise Refusal(f"the records have no modality {missing[0]!r}, and this baseline needs a sound and a film; they have {', '.join(widths)}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "network"))
            self.sound = TimeAutoencoder(widths[self.audio], self.audio_width, self.audio_code)
            self.film = TokenAutoencoder(widths[self.video], self.video_widths, self.dropout)

    @property
    def nothing(self) -> float:
        return 0.0  # that of a typical good weld

    def learn(self, train: RecordSet, val: RecordSet, run: Run) -> None:
        from stages.training import Plan

        sound = TokenSource(train, self.audio)
        self.sound.standardised.learn(sound.tokens.values)
        adam = partial(torch.optim.Adam, lr=self.audio_rate)
        plan = Plan(adam, self.audio_epochs, self.batch_size, self.step_limit, schedule=one_cycle)
        run.train(self.sound, sound, _error(self.sound), plan, name="sound")

        film = TokenSource(train, self.video)
        self.film.standardised.learn(film.tokens.values)
        good = TokenSource(val.kept((val.label == 0).nonzero()[:, 0].tolist()), self.video)
        watch = "val_error" if good.samples else None
        plan = Plan(
            partial(torch.optim.Adam, lr=self.video_rate), self.video_epochs, self.batch_size, self.step_limit,
            watch=watch, patience=self.patience if watch else None,
        )  # fmt: skip
        run.train(self.film, film, _error(self.film), plan, _measure(self.film, good, run.device) if watch else None, name="film")
        self.to(run.device)
        with torch.no_grad():
            self._standardise(train)
            self._weigh(val)

    def rate(self, records: Records) -> Tensor:
        scores, there = self._scores(records)
        return self.together(scores, there, self.weight)

    def _raw(self, records: Records) -> tuple[Tensor, Tensor]:
        """(B, 2) float64 and (B, 2) bool: the scores of sound and film in their own units, and whether they are there."""
        device = self.centre.device
        sound, film = (Ragged(*(part.to(device) for part in records.tokens[name])) for name in (self.audio, self.video))
        audio = record_means(self.sound(sound).double()[:, None], sound.lengths)[:, 0]
        video = worst_stretch(self.film(film).double(), film.time, film.lengths.tolist(), self.window)
        return torch.stack([audio, video], dim=1), torch.stack([sound.lengths > 0, film.lengths > 0], dim=1)

    def _scores(self, records: Records) -> tuple[Tensor, Tensor]:
        """The same in deviations of good training welds, on the device of the records."""
        raw, there = self._raw(records)
        return ((raw - self.centre) / self.scale).to(records.label.device), there.to(records.label.device)

    def together(self, scores: Tensor, there: Tensor, weight: Tensor) -> Tensor:
        """(B,): the weighted sum, the one that is there, or 0."""
        shares = torch.stack([weight, 1 - weight]).to(scores.device) * there
        alone = there.sum(dim=1) == 1
        shares = torch.where(alone[:, None], there.double(), shares)
        return (scores * shares).sum(dim=1)

    def _standardise(self, train: RecordSet) -> None:
        found = [self._raw(self.fitting(batch)) for batch in batches(train)]
        raw, there = torch.cat([one for one, _ in found]), torch.cat([one for _, one in found])
        for number in range(2):
            own = raw[there[:, number], number]
            self.centre[number], self.scale[number] = own.mean(), own.std(correction=0).clamp(min=1e-9)

    def _weigh(self, val: RecordSet) -> None:
        """The weight with the highest AUROC on validation records that have both; the paper's where they do not say."""
        found = [(*self._scores(self.fitting(batch)), batch.label) for batch in batches(val)]
        if not found:
            return
        scores, there, label = (torch.cat(parts) for parts in zip(*found, strict=True))
        both = there.all(dim=1) & (label >= 0)
        if len(label[both].unique()) < 2:
            return
        grid = torch.linspace(0, 1, GRID, dtype=torch.float64)
        areas = np.array([auroc(self.together(scores[both], there[both], one).cpu().numpy(), label[both].cpu().numpy()) for one in grid])
        best = grid[torch.from_numpy(areas >= areas.max() - 1e-12)]
        self.weight.copy_(best[(best - PAPER).abs().argmin()])


def _error(network: nn.Module) -> Callable[[Batch, torch.Generator], Tensor]:
    def loss(batch: Batch, generator: torch.Generator) -> Tensor:
        return network(taken(batch.features)).mean()

    return loss


def _measure(network: nn.Module, good: TokenSource, device: torch.device) -> Callable[[], Mapping[str, float]]:
    tokens = Ragged(*(part.to(device) for part in good.tokens))
    return lambda: {"val_error": float(network(tokens).mean())}
