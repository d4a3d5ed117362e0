"""The loop that every trained model shares: shuffle, step, measure, keep the best, stop early, survive a kill.

Nothing in it depends on where it was interrupted. The order of an epoch and the random numbers of a step are derived from (seed, epoch) and
(seed, step) alone, so no generator has a state to save; the learning rate is a function of the step. What is left, that is the model, the
best state so far, the optimiser and the counters, goes into one file every few seconds, written whole or not at all, and a run that starts
again from it ends bit for bit as one that was never stopped.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages import io
from stages.errors import UserError
from stages.progress import Advance, progress
from stages.seed import derive, torch_generator
from stages.types import Batch, Batches

Loss = Callable[[Batch, torch.Generator], Tensor]  # the scalar to descend; draws come from the generator, dropout is seeded too
Measure = Callable[[], Mapping[str, float]]  # named quantities of the validation split, the model being in eval mode


class Diverged(UserError, RuntimeError):
    """The loss, or the watched quantity, stopped being a finite number."""


class NoRoom(UserError, RuntimeError):
    """E502: the device's memory does not hold a step."""


@dataclass(frozen=True)
class Plan:
    """How a model is trained: what steps, how many, and what decides which state is kept."""

    optimiser: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    epochs: int
    batch_size: int
    steps: int | None = None  # a cap below epochs x batches
    schedule: Callable[[int, int], float] | None = None  # (step, total steps) -> factor on each group's learning rate
    watch: str | None = None  # which measured quantity must be lowest; None keeps the last state
    patience: int | None = None  # measurements without a new best before it stops
    every: int | None = None  # steps between measurements; None is once an epoch
    order: Callable[[torch.Generator], list[int]] | None = None  # the positions of one epoch, as many as there are samples; a permutation by default
    plateau: int | None = None  # measurements without a new best after which all rates are divided by ten, again and again
    mixed_precision: bool = False  # bfloat16 where CUDA has it; elsewhere it is said once and ignored


@dataclass
class Run:
    """One fit: its seed, its device, its progress, and where it resumes from.

    resume: a folder outside every output of the pipeline, one per (code, parameters, data); the caller removes it once the result is
    stored. history: what a fit wants remembered, in order; ends beside the model. aux: auxiliary images by name (textures, penalty images),
    for the detectors that draw on any. backbones: the local folder of weights, for those that bring a frozen network of their own. category: what the
    samples show, as the data set calls it. dataset: whose images will be judged. text: sentences to (n, D), where the encoder has a text tower beside
    the one that sees images. learnt_from: by name, images that a fit owes something to and that are neither its training images nor `aux`; it says so
    itself, and the result names them. heard: told of each row of the history as it is measured, the model being in eval mode; after a kill, those since the
    last checkpoint are told again.
    """

    seed: int
    device: str | torch.device = "cpu"  # "auto": CUDA where there is one
    resume: Path | None = None
    label: str = ""
    quiet: bool = False
    checkpoint_s: float = 5.0
    history: list[dict[str, Any]] = field(default_factory=list)
    aux: Mapping[str, Batches] = field(default_factory=dict)
    backbones: Path = Path("backbones")
    category: str = ""
    dataset: str = ""
    text: Callable[[Sequence[str]], Tensor] | None = None
    learnt_from: dict[str, str] = field(default_factory=dict)
    heard: Callable[[Mapping[str, Any]], None] | None = None
    trained: set[str] = field(default_factory=set, repr=False)

    def __post_init__(self) -> None:
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(self.device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise RuntimeError("torch sees no CUDA device here; set compute.device to cpu or auto in params.yaml")

    def generator(self, *purpose: str | int) -> torch.Generator:
        """A generator of its own for each purpose, on the CPU, so that every device draws the same numbers."""
        return torch_generator(self.seed, *purpose)

    def progress(self, what: str, total: int, done: int = 0) -> AbstractContextManager[Advance]:
        return progress(f"{self.label}: {what}" if self.label else what, total, done, self.quiet)

    def say(self, text: str) -> None:
        if not self.quiet:
            print(f"{self.label}: {text}" if self.label else text, flush=True)

    def train(self, model: nn.Module, batches: Batches, loss: Loss, plan: Plan, measure: Measure | None = None, name: str = "train") -> int:
        """Train `model` in place as `plan` says; returns after how many steps the kept state was reached.

        model: leaves in eval mode, on `self.device`. name: of this training; a fit that trains twice gives two names.
        Each measurement appends to `history` one row: step, epoch, mean loss since the last row, learning rate, and what was measured.
        Raises Diverged when the loss is not finite, ValueError when the plan cannot be followed.
        """
        _check(plan, batches, measure)
        if name in self.trained:
            raise ValueError(f"this run has already trained {name!r}: give each training of one fit its own name")
        self.trained.add(name)
        model.to(self.device)
        loop = _Loop(self, model, batches, plan, name)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), self.progress(name, loop.total, loop.step) as advance:
            while not loop.finished:
                loop.advance(loss, measure)
                advance(1)
        return loop.close()


def _check(plan: Plan, batches: Batches, measure: Measure | None) -> None:
    if batches.samples == 0:
        raise ValueError("there are no images to train on")
    for key in ("epochs", "batch_size", "steps", "patience", "every"):
        value = getattr(plan, key)
        if value is not None and value < 1:
            raise ValueError(f"{key} must be at least 1, got {value}")
    if plan.patience is not None and plan.watch is None:
        raise ValueError("patience needs a quantity to watch: name it in `watch`")
    if plan.plateau is not None and (plan.plateau < 1 or plan.watch is None):
        raise ValueError("plateau must be at least 1, and needs a quantity to watch: name it in `watch`")
    if plan.watch is not None and measure is None:
        raise ValueError(f"watching {plan.watch!r} needs something that measures it")


class _Loop:
    """One training as it goes; everything that changes from step to step is in `_counters`, the model and the optimiser."""

    def __init__(self, run: Run, model: nn.Module, batches: Batches, plan: Plan, name: str) -> None:
        self.run, self.model, self.batches, self.plan, self.name = run, model, batches, plan, name
        self.optimiser = plan.optimiser([parameter for parameter in model.parameters() if parameter.requires_grad])
        self.base_rates = [group["lr"] for group in self.optimiser.param_groups]
        self.per_epoch = math.ceil(batches.samples / plan.batch_size)
        self.total = min(plan.epochs * self.per_epoch, plan.steps or math.inf)
        self.step, self.stopped = 0, False
        self.best_value, self.best_step, self.waited, self.drops, self.held = math.inf, 0, 0, 0, 0
        self.loss_sum, self.loss_count = 0.0, 0
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Tensor] = {}
        self.order: tuple[int, list[int]] = (-1, [])
        self.saved = time.monotonic()
        self.mixed = plan.mixed_precision and run.device.type == "cuda" and torch.cuda.is_bf16_supported()
        if plan.mixed_precision and not self.mixed:
            run.say(f"mixed precision needs CUDA with bfloat16, and this is {run.device}: it is ignored, training goes on in float32")
        self._restore()

    @property
    def finished(self) -> bool:
        return self.stopped or self.step >= self.total

    def advance(self, loss: Loss, measure: Measure | None) -> None:
        """One optimiser step and, where one is due, a measurement and a checkpoint."""
        self._descend(loss)
        self.step += 1
        if self.step % (self.plan.every or self.per_epoch) == 0 or self.step == self.total:
            self._measure(measure)
        if time.monotonic() - self.saved >= self.run.checkpoint_s or self.finished:
            self._save()

    def close(self) -> int:
        if self.best:
            self.model.load_state_dict(self.best)
        self.model.eval()
        self.run.history += self.history
        return self.best_step if self.best else self.step

    def _descend(self, loss: Loss) -> None:
        self.model.train()
        for group, rate in zip(self.optimiser.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * (self.plan.schedule(self.step, self.total) if self.plan.schedule else 1.0) * 0.1**self.drops
        generator = torch.manual_seed(derive(self.run.seed, self.name, "step", self.step))
        try:
            with torch.autocast(self.run.device.type, torch.bfloat16, enabled=self.mixed):
                value = loss(self._batch(), generator)
            number = value.item()
            if not math.isfinite(number):
                raise Diverged(self._diverged("loss", number))
            self.optimiser.zero_grad(set_to_none=True)
            value.backward()
            self.optimiser.step()
        except torch.OutOfMemoryError as error:
            size = self.plan.batch_size
            mend = f"Set batch_size to {size // 2} in params.yaml, or" if size > 1 else "Use smaller images, or set"
            raise NoRoom(f"E502 {self.run.device} has no room for a batch of {size} ({self.name}). {mend} compute.device to cpu") from error
        self.loss_sum, self.loss_count = self.loss_sum + number, self.loss_count + 1

    def _batch(self) -> Batch:
        """The images of this step. The last batch of an epoch may be smaller, so that every image counts once an epoch."""
        epoch, place = divmod(self.step, self.per_epoch)
        if self.order[0] != epoch:
            generator = self.run.generator(self.name, "order", epoch)
            order = self.plan.order(generator) if self.plan.order else torch.randperm(self.batches.samples, generator=generator).tolist()
            if len(order) != self.batches.samples:
                raise ValueError(f"the order of an epoch must have {self.batches.samples} positions, one a sample, got {len(order)}")
            self.order = (epoch, order)
        size = self.plan.batch_size
        batch = self.batches.take(self.order[1][place * size : (place + 1) * size])
        return batch._replace(features={key: value.to(self.run.device) for key, value in batch.features.items()})

    def _measure(self, measure: Measure | None) -> None:
        self.model.eval()
        with torch.no_grad():
            measured = dict(measure()) if measure else {}
        row = {"training": self.name, "step": self.step, "epoch": (self.step - 1) // self.per_epoch}
        row |= {"loss": self.loss_sum / self.loss_count, "lr": self.optimiser.param_groups[0]["lr"], **measured}
        self.history.append(row)
        if self.run.heard is not None:
            self.run.heard(row)
        self.loss_sum, self.loss_count = 0.0, 0
        if self.plan.watch is not None:
            self._keep_best(measured)

    def _keep_best(self, measured: dict[str, float]) -> None:
        if self.plan.watch not in measured:
            raise ValueError(f"nothing measures {self.plan.watch!r}; measured: {', '.join(sorted(measured)) or 'nothing'}")
        value = measured[self.plan.watch]
        if not math.isfinite(value):
            raise Diverged(self._diverged(self.plan.watch, value))
        if value < self.best_value:
            self.best_value, self.best_step, self.waited, self.held = value, self.step, 0, 0
            self.best = {key: tensor.clone() for key, tensor in self.model.state_dict().items()}
        else:
            self.waited += 1
            self.held += 1
            if self.plan.plateau is not None and self.held >= self.plan.plateau:
                self.drops, self.held = self.drops + 1, 0
            self.stopped = self.plan.patience is not None and self.waited >= self.plan.patience

    def _diverged(self, what: str, value: float) -> str:
        rate = self.optimiser.param_groups[0]["lr"]
        return (
            f"{self.run.label or self.name}: the {what} became {value} at step {self.step + 1} of {self.total} "
            f"(epoch {self.step // self.per_epoch}, learning rate {rate:g}). Lower the learning rate (a tenth is a good first try); "
            "if it is the first step, look for features that are not finite"
        )

    @property
    def _file(self) -> Path | None:
        return self.run.resume / f"{self.name}.safetensors" if self.run.resume else None

    def _counters(self) -> dict[str, Any]:
        names = ("step", "stopped", "best_value", "best_step", "waited", "drops", "held", "loss_sum", "loss_count")
        return {name: getattr(self, name) for name in names} | {"history": [list(row.items()) for row in self.history]}  # JSON there sorts keys

    def _save(self) -> None:
        if self._file is None:
            return
        moments, groups = _pack_optimiser(self.optimiser)
        parts = {"model": self.model.state_dict(), "best": self.best, "optimiser": moments}
        tensors = {f"{part}.{key}": tensor.detach().clone() for part, state in parts.items() for key, tensor in state.items()}
        io.write_model(self._file, tensors, {"counters": self._counters(), "optimiser": groups})
        self.saved = time.monotonic()

    def _restore(self) -> None:
        if self._file is None or not self._file.is_file():
            return
        tensors, about = _read_checkpoint(self._file)
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "optimiser": {}}
        for name, tensor in tensors.items():
            part, key = name.split(".", 1)
            parts[part][key] = tensor
        self.model.load_state_dict(parts["model"])
        self.best = parts["best"]
        _unpack_optimiser(self.optimiser, parts["optimiser"], about["optimiser"])
        for name, value in about["counters"].items():
            setattr(self, name, value)
        self.history = [dict(row) for row in self.history]
        self.run.say(f"{self.name} goes on from step {self.step} of {self.total}")


def _pack_optimiser(optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Its tensors under "<parameter>.<key>", and the plain numbers that JSON keeps exactly."""
    state = optimiser.state_dict()
    flat = {f"{index}.{key}": value for index, values in state["state"].items() for key, value in values.items()}
    tensors = {key: value for key, value in flat.items() if isinstance(value, Tensor)}
    return tensors, {"numbers": {key: value for key, value in flat.items() if key not in tensors}, "groups": state["param_groups"]}


def _unpack_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **about["numbers"]}.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({"state": state, "param_groups": about["groups"]})


def _read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["assay"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is no checkpoint ({error}); delete the folder {path.parent} to start afresh") from error
