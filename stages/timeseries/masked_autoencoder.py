"""Masked autoencoder: a transformer redraws hidden patches of a window from the rest; a shallow student imitates it; what neither expects is anomalous.

After Ristea et al., "Self-Distilled Masked Auto-Encoders are Efficient Video Anomaly Detectors", CVPR 2024, arXiv:2306.12041, carried over to
multivariate signals. The network is in masked/network.py, the losses in masked/losses.py, the scores in masked/scoring.py; docs/masked_autoencoder.md
has the measured effect of each choice.

Deviations from that paper:
- Teacher and student are trained together after `teacher_warmup` of the training, with the gradient of the student stopped at the teacher; the paper
  trains one after the other.
- No weighting of tokens by motion. `regime="synth-erase"` is the paper's idea of erasing pasted anomalies; without it nothing is pasted.
- The regime `weak` pushes the student away from the teacher where a label says so. The paper has no such loss.
- Several score modes; what they need to know is measured on normal validation data. Without any, the training data stands in.

L steps of a window, N patches, V variables, T steps of a series.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from stages.seed import derive
from stages.timeseries.detector import REGIMES, Reading, SeriesDetector, Stretch
from stages.timeseries.masked import masks, sweeps
from stages.timeseries.masked.corruption import corrupted
from stages.timeseries.masked.losses import Losses, MarginType
from stages.timeseries.masked.network import Network, PatchifyMode, Shape
from stages.timeseries.masked.scoring import Calibration, Errors, Multiscale, ScoreMode, components
from stages.timeseries.windows import Windows, lengthened
from stages.types import Batch, NotFitted, Refusal

if TYPE_CHECKING:
    from stages.training import Run

FURTHEST = 8.0  # standard deviations; further values are clipped
CLIP_NORM = 1.0
WARMUP = 0.05  # share of the steps over which the learning rate rises


class MaskedAutoencoder(SeriesDetector):
    """seq_length, num_patches: steps and patches of a window; the second divides the first.

    masking_strategy: "patch" hides patches at random, "span" neighbouring ones, "mixed" either, "feature_wise" each variable by itself.
    trim: share of the hidden patches, the worst redrawn of a batch, that teach nothing. lambda_discrepancy: weight of the student's loss, and of its
    discrepancy in the score mode "fixed". scoring: "all_patches" hides every patch in turn in `passes` passes (as many as patches: one at a time),
    "centre" the middle share `masking_ratio` of a window, "last_patch" its last `mask_last_n` steps (None: one patch), for streams. score_stride: steps
    between scored windows; None: a quarter of a window, half of what is hidden with "centre", 1 with "last_patch". look_again: a second pass in which
    steps scored above that quantile of normal validation data are hidden from all others; 0 for one pass. epochs, steps: whichever ends first.
    """

    regimes = REGIMES

    def __init__(
        self,
        *,
        regime: Literal["unsup-contaminated", "unsup-clean", "weak", "synth-erase"] = "unsup-contaminated",
        seq_length: int = 100,
        num_patches: int = 25,
        d_model: int = 64,
        nhead: int = 4,
        num_encoder_layers: int = 3,
        num_teacher_layers: int = 4,
        num_student_layers: int = 1,
        dim_feedforward: int = 256,
        dropout: float = 0.1,
        patchify_mode: PatchifyMode = "linear",
        norm: Literal["group", "batch"] = "group",
        leak_guard: bool = True,
        shared_decoder_layers: int = 0,
        shared_mask_token: bool = False,
        masking_ratio: float = 0.4,
        masking_strategy: Literal["patch", "span", "mixed", "feature_wise"] = "patch",
        mask_stage: Literal["before", "after"] = "after",
        margin_type: MarginType = "hinge",
        margin: float = 0.5,
        dynamic_k: float = 3.0,
        patch_level_loss: bool = True,
        force_mask_anomaly: bool = False,
        lambda_discrepancy: float = 0.5,
        trim: float = 0.0,
        corrupted_share: float = 0.5,
        epochs: int = 50,
        steps: int | None = None,
        batch_size: int = 32,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-5,
        teacher_warmup: float = 0.1,
        window_stride: int = 10,
        scoring: Literal["all_patches", "centre", "last_patch"] = "all_patches",
        passes: int = 5,
        mask_last_n: int | None = None,
        score_stride: int | None = None,
        score_mode: ScoreMode = "fixed",
        lengths: Sequence[int] = (5, 10, 20, 40),
        liveliness_weight: float = 1.0,
        look_again: float = 0.0,
    ) -> None:
        super().__init__()
        self.shape = Shape(
            steps=seq_length, patches=num_patches, width=d_model, heads=nhead, encoder_layers=num_encoder_layers, teacher_layers=num_teacher_layers,
            student_layers=num_student_layers, feedforward=dim_feedforward, dropout=dropout, patchify=patchify_mode,
            by_variable=masking_strategy == "feature_wise", mask_before=mask_stage == "before", norm=norm, leak_guard=leak_guard,
            shared_layers=shared_decoder_layers, shared_mask_token=shared_mask_token,
        )  # fmt: skip
        self.shape.check()
        patch_size = seq_length // num_patches
        self.mask_last_n = patch_size if mask_last_n is None else mask_last_n
        if self.mask_last_n % patch_size or not 0 < self.mask_last_n < seq_length:
            raise ValueError(f"mask_last_n must be a multiple of the patch size {patch_size} below {seq_length}, got {mask_last_n}")
        if not 0 < masking_ratio < 1:
            raise ValueError(f"masking_ratio must be between 0 and 1 (share of patches that are hidden), got {masking_ratio}")
        if not 2 <= passes <= num_patches:
            raise ValueError(f"passes must be in 2..{num_patches} (one patch at a time), got {passes}")
        if not 0 <= look_again < 1:
            raise ValueError(f"look_again must be in 0..1 (a quantile of normal scores; 0 for one pass), got {look_again}")
        if look_again and scoring == "last_patch":
            raise ValueError("look_again needs what follows a step; choose scoring all_patches or centre, or look_again 0")
        self.regime, self.ratio, self.strategy = regime, masking_ratio, masking_strategy
        self.force_mask_anomaly, self.weight, self.corrupted_share = force_mask_anomaly, lambda_discrepancy, corrupted_share
        self.epochs, self.step_limit, self.batch_size, self.window_stride = epochs, steps, batch_size, window_stride
        self.learning_rate, self.weight_decay, self.teacher_warmup = learning_rate, weight_decay, teacher_warmup
        self.scoring, self.passes, self.score_mode, self.look_again = scoring, passes, score_mode, look_again
        self.hidden = masks.hidden_count(num_patches, masking_ratio)
        default = {"all_patches": seq_length // 4, "centre": self.hidden * patch_size // 2, "last_patch": 1}[scoring]
        self.stride = max(default, 1) if score_stride is None else score_stride
        self.network: Network | None = None
        self.losses = Losses(margin_type, margin, dynamic_k, patch_level_loss, trim)
        self.calibration = Calibration()
        self.multiscale = Multiscale(lengths, liveliness_weight)
        self.register_buffer("trained", torch.zeros((), dtype=torch.int64))  # steps of the optimiser
        self.register_buffer("suspicion", torch.tensor(math.inf))  # a score above it makes a step suspicious
        self._set_reach()
        self.eval()

    def learn(self, train: Sequence[Stretch], val: Sequence[Stretch], run: Run) -> None:
        if self.regime == "weak" and any(stretch.label is None for stretch in train):
            raise Refusal("the regime weak learns from labels, and the training data has none; choose another regime")
        self._new_network(train[0].values.shape[1], derive(run.seed, "network"))
        self.trained.zero_()
        windows = Windows(train, self.shape.steps, self.window_stride)
        self._train(windows, val, run)
        self._calibrate(val if any(len(stretch.values) for stretch in val) else train)

    def rate(self, values: Tensor) -> Tensor:
        return self.combined(self.errors(values))

    @torch.no_grad()
    def attribution(self, values: Tensor) -> Tensor:
        """With the score mode "multiscale" what each variable adds to the score, otherwise its squared error."""
        return self._blame(self.errors(self.standardised(values)))

    @torch.no_grad()
    def components(self, values: Tensor) -> dict[str, Tensor]:
        """The score of each step, (T,), as the model gives it (`combined`), from the reconstruction alone and from the discrepancy alone.

        values: (T, V) in the units of train.
        """
        return self._parts(self.errors(self.standardised(values)))

    @torch.no_grad()
    def read(self, values: Tensor) -> Reading:
        found = self.errors(self.standardised(values))
        parts = self._parts(found)
        return Reading(parts["combined"].float(), self._blame(found), parts)

    def combined(self, found: Errors) -> Tensor:
        """Errors of T steps to their scores, (T,)."""
        if self.score_mode == "multiscale":
            return self.multiscale(found).sum(1)
        return self.calibration.combined(self._components(found), self.score_mode, self.weight)

    def _blame(self, found: Errors) -> Tensor:
        return self.multiscale(found) if self.score_mode == "multiscale" else found.squared

    def _parts(self, found: Errors) -> dict[str, Tensor]:
        reconstruction, discrepancy = self._components(found).unbind(1)
        return {"combined": self.combined(found), "reconstruction": reconstruction, "discrepancy": discrepancy}

    @torch.no_grad()
    def errors(self, values: Tensor) -> Errors:
        """What the windows over (T, V) standardised values say of each step."""
        if self.network is None:
            raise NotFitted("MaskedAutoencoder has learnt nothing yet: call fit(train, val, run) or load_state_dict first")
        values, steps = self.clipped(values), len(values)
        if self.scoring == "last_patch":
            return sweeps.last_errors(self.network, values, self.stride, self.mask_last_n // self.network.patch_size)
        series = lengthened(values, self.shape.steps)
        plan = self._sweeps(len(series))
        found = sweeps.errors(self.network, series, plan)
        if self.look_again and self.suspicion.isfinite():
            found = sweeps.errors(self.network, series, plan, self.combined(found) > self.suspicion)
        return Errors(*(column[-steps:] for column in found))

    def clipped(self, values: Tensor) -> Tensor:
        return values.clamp(-FURTHEST, FURTHEST)

    def _components(self, found: Errors) -> Tensor:
        return components(found.squared, found.discrepancy)

    def _sweeps(self, steps: int) -> list[sweeps.Sweep]:
        if self.scoring == "centre":
            return sweeps.centred(steps, self.network, self.stride, self.hidden)
        return sweeps.all_patches(steps, self.network, self.stride, self.passes)

    def _set_reach(self) -> None:
        """How far around a step its score looks. One step more ahead than a window: the last window of a series stands at no multiple of the stride."""
        around = self.shape.steps - 1
        past, future = (around, self.stride - 1) if self.scoring == "last_patch" else (around, around + 1)
        smoothed = self.multiscale.reach if self.score_mode == "multiscale" else 0
        looks = 2 if self.look_again else 1
        self.past, self.future = looks * (past + smoothed), looks * (future + smoothed)

    def _new_network(self, variables: int, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = Network(self.shape._replace(variables=variables)).eval()

    def _train(self, windows: Windows, val: Sequence[Stretch], run: Run) -> None:
        from stages.training import Plan

        total = min(self.epochs * math.ceil(windows.samples / self.batch_size), self.step_limit or math.inf)
        plan = Plan(self._optimiser, self.epochs, self.batch_size, self.step_limit, schedule=_cosine, every=max(total // 10, 1))
        held_out = Windows(val, self.shape.steps, self.shape.steps)
        sample = held_out.take(list(range(min(held_out.samples, self.batch_size)))) if held_out.samples else None

        def loss(batch: Batch, generator: torch.Generator) -> Tensor:
            done = int(self.trained) / total
            self.trained += 1
            return self._loss(batch, generator, done)

        measure = (lambda: self._val_loss(sample.features["window"].to(run.device))) if sample else None
        run.train(self, windows, loss, plan, measure, name="network")

    def _loss(self, batch: Batch, generator: torch.Generator, done: float) -> Tensor:
        """done: the share of the training that lies behind."""
        target = self.clipped(batch.features["window"])
        anomalous = self._anomalous(batch, target)
        window, hidden = target, self._mask(len(target), generator, anomalous).to(target.device)
        counted = hidden
        if self.regime == "synth-erase":
            window, touched = corrupted(target, self.corrupted_share, generator)
            patches = self._by_patch(touched)
            counted = hidden | (patches if hidden.ndim == 2 else patches[..., None])
        terms = self.losses(self.network(window, hidden), target, counted, anomalous)
        if done < self.teacher_warmup:
            return terms.reconstruction
        push = min((done - self.teacher_warmup) / 0.2, 1.0)
        return terms.reconstruction + self.weight * (terms.distillation + push * terms.push)

    def _anomalous(self, batch: Batch, target: Tensor) -> Tensor:
        """(B, N) bool, the patches that a label calls anomalous; none but in the regime `weak`."""
        if self.regime != "weak":
            return torch.zeros(len(target), self.shape.patches, dtype=torch.bool, device=target.device)
        return self._by_patch(batch.features["label"].bool())

    def _by_patch(self, steps: Tensor) -> Tensor:
        return steps.unflatten(1, (self.shape.patches, -1)).any(2)

    def _mask(self, batch: int, generator: torch.Generator, anomalous: Tensor) -> Tensor:
        patches, ratio, first = self.shape.patches, self.ratio, anomalous.cpu() if self.force_mask_anomaly else None
        if self.strategy == "feature_wise":
            return masks.drawn_by_variable(batch, patches, self.network.shape.variables, ratio, generator, first)
        if self.strategy == "span":
            return masks.drawn_spans(batch, patches, ratio, generator)
        mask = masks.drawn(batch, patches, ratio, generator, first)
        if self.strategy == "mixed":
            either = torch.rand(batch, 1, generator=generator) < 0.5
            return torch.where(either, mask, masks.drawn_spans(batch, patches, ratio, generator))
        return mask

    def _val_loss(self, window: Tensor) -> dict[str, float]:
        window = self.clipped(window)
        mask = self._mask(len(window), torch.Generator().manual_seed(0), self._by_patch(torch.zeros_like(window[..., 0]))).to(window.device)
        terms = self.losses(self.network(window, mask), window, mask, mask.new_zeros(mask.shape[:2]))
        return {"val_reconstruction": terms.reconstruction.item(), "val_discrepancy": terms.distillation.item()}

    def _optimiser(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        matrices, others = ([one for one in parameters if (one.ndim > 1) is wanted] for wanted in (True, False))
        groups = [{"params": matrices, "weight_decay": self.weight_decay}, {"params": others, "weight_decay": 0.0}]
        optimiser = torch.optim.AdamW(groups, lr=self.learning_rate)

        def clip(*_: object) -> None:
            nn.utils.clip_grad_norm_(parameters, CLIP_NORM)

        optimiser.register_step_pre_hook(clip)
        return optimiser

    @torch.no_grad()
    def _calibrate(self, normal: Sequence[Stretch]) -> None:
        self.suspicion.fill_(math.inf)
        device = self.trained.device
        long_enough = [stretch for stretch in normal if len(stretch.values) >= self.shape.steps] or normal
        found = [self.errors(stretch.values.to(device)) for stretch in long_enough if len(stretch.values)]
        self.calibration.fit(torch.cat([self._components(one) for one in found]))
        self.multiscale.fit(found)
        if self.look_again:
            self.suspicion.fill_(float(torch.cat([self.combined(one) for one in found]).double().quantile(self.look_again)))

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        variables = len(state_dict.get(prefix + "centre", ()))
        if variables and (self.network is None or self.network.shape.variables != variables):
            self._new_network(variables, seed=0)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _cosine(step: int, total: int) -> float:
    return min((step + 1) / max(WARMUP * total, 1), (1 + math.cos(math.pi * step / total)) / 2)
