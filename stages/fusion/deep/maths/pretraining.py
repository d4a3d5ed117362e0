"""What can be learnt from recordings that nobody judged: to say what is hidden of one medium by what is left of all.

Stretches of the sensors and tokens of sound (and of whatever else has many) are hidden; a Transformer of one layer that is thrown away afterwards reads what
is left of all modalities, and linear maps say what was hidden, in standardised units. What stays are the encoders that stand before the fusion. Labels
are not looked at, so records without any serve as well.

After masked autoencoders (He et al., arXiv:2111.06377) and BERT (Devlin et al., arXiv:1810.04805). Deviations: hidden tokens of the sensors are seen by
their encoder as patches without steps, so it needs no sign of its own for them; the error is over hidden tokens alone, each modality counting the same.

B records, L tokens, M modalities, W common width, D width of a modality, V channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stages.datasets.records import key
from stages.fusion.deep.maths.encoder import Padded, SensorEncoder, TokenEncoder, joined, time_code
from stages.fusion.deep.maths.learning import Source, ragged
from stages.seed import derive
from stages.training import Plan, Run
from stages.types import Batch

BATCH_SIZE, LEARNING_RATE = 16, 1e-3
MASKED = 0.4  # share of the tokens that are hidden
FEW = 8  # modalities whose records have fewer tokens are read, and not hidden from


class Pretraining(nn.Module):
    """encoder: what learns. heads: of the layer that is thrown away."""

    def __init__(self, encoder: TokenEncoder, heads: int = 4) -> None:
        super().__init__()
        width = encoder.encoding.width
        heads = math.gcd(heads, width)
        self.encoder = encoder
        self.sign = nn.ParameterDict({key(name): nn.Parameter(0.02 * torch.randn(width)) for name in encoder.names})
        self.context = nn.TransformerEncoderLayer(width, heads, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.decoders = nn.ModuleDict({key(name): nn.Linear(width, self._told(name)) for name in encoder.names})

    def loss(self, parts: Mapping[str, Padded], generator: torch.Generator) -> Tensor:
        """parts: as `TokenEncoder.padded` gives them. generator: on the CPU. 0 with a gradient of 0 where nothing could be hidden."""
        targets, chosen, shown = {}, {}, {}
        for name in self.encoder.names:
            targets[name], there = self._target(name, parts[name])
            chosen[name] = self._chosen(there, generator)
            shown[name] = self._encoded(name, parts[name], chosen[name])
        encoded = joined(shown)
        read = self.context(encoded.tokens, src_key_padding_mask=~encoded.mask)
        total, counted = read.sum() * 0, 0
        for name, span in encoded.spans.items():
            if chosen[name].any():
                error = (self.decoders[key(name)](read[:, span]) - targets[name]).square().mean(2)
                total, counted = total + error[chosen[name]].mean(), counted + 1
        return total / max(counted, 1)

    def _told(self, name: str) -> int:
        """How many numbers are said of a token: of sensors all steps of a patch."""
        adapter = self.encoder.adapters[key(name)]
        channels = len(adapter.standard.centre)
        return channels * adapter.patch if isinstance(adapter, SensorEncoder) else channels

    def _target(self, name: str, part: Padded) -> tuple[Tensor, Tensor]:
        """(B, L, what is said of a token) and which tokens are there, (B, L) bool."""
        adapter = self.encoder.adapters[key(name)]
        if not isinstance(adapter, SensorEncoder):
            return adapter.standard(part.values), part.mask
        patches = adapter.patches(part)
        channels = len(adapter.standard.centre)
        steps = patches.values.unflatten(2, (adapter.patch, channels + 1))[..., :channels]
        return steps.flatten(2), patches.mask

    def _chosen(self, there: Tensor, generator: torch.Generator) -> Tensor:
        """(B, L) bool: the tokens that are hidden, about MASKED of them; none where there are few."""
        luck = torch.rand(there.shape, generator=generator).to(there.device)
        return there & (luck < MASKED) & (there.sum(1, keepdim=True) >= FEW)

    def _encoded(self, name: str, part: Padded, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, L, W) with their modality and time, of which hidden ones say nothing else; mask (B, L) and presence (B,)."""
        encoder, adapter = self.encoder, self.encoder.adapters[key(name)]
        if isinstance(adapter, SensorEncoder):
            whole = adapter.patches(part)
            steps = chosen.repeat_interleave(adapter.patch, 1)[:, : part.mask.shape[1]]
            shown = adapter.patches(part._replace(mask=part.mask & ~steps))
            values = adapter.embed(shown.values) + adapter.time(time_code(whole.time))
            attended = whole.mask | ~whole.mask.any(1, keepdim=True)
            tokens, time, mask = adapter.layers(values, src_key_padding_mask=~attended), whole.time, whole.mask
        else:
            tokens, time, mask = adapter(part)
            tokens = torch.where(chosen[..., None], self.sign[key(name)], tokens)
        present = mask.any(1)
        tokens = torch.where(present[:, None, None], tokens + encoder.time(time_code(time)), encoder.absent[key(name)])
        first = torch.arange(mask.shape[1], device=mask.device) == 0
        return tokens + encoder.embedding[key(name)], mask | (first & ~present[:, None]), present


def pretrain(encoder: TokenEncoder, source: Source, epochs: int, run: Run, name: str = "pretraining") -> None:
    """Teach an encoder in place, on the device of the run, by all records of the source, whatever their labels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(run.seed, name))
        model = Pretraining(encoder)

    def loss(batch: Batch, generator: torch.Generator) -> Tensor:
        return model.loss(encoder.padded(ragged(batch.features, encoder.names)), generator)

    def optimiser(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, LEARNING_RATE)

    def cosine(step: int, total: int) -> float:
        return (1 + math.cos(math.pi * step / total)) / 2

    run.train(model, source, loss, Plan(optimiser, epochs, BATCH_SIZE, schedule=cosine), name=name)


def labelled_share(classes: Tensor, share: float, generator: torch.Generator) -> list[int]:
    """The positions of about `share` of the records of each class, one at least, in order: those whose labels may be looked at.

    classes: (N,) int64. For the curve over the share of labels, 1 % to all.
    """
    if not 0 < share <= 1:
        raise ValueError(f"the share of labels must be above 0 and at most 1, got {share}")
    kept: list[int] = []
    for kind in classes.unique(sorted=True):
        rows = (classes == kind).nonzero()[:, 0]
        kept += rows[torch.randperm(len(rows), generator=generator)[: max(1, round(share * len(rows)))]].tolist()
    return sorted(kept)
