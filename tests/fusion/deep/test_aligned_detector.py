"""A detector that must know when something was heard loses it where clocks are off, and gets it back where they are aligned."""

import pytest
import torch

from stages import fusion
from stages.datasets.records import Record, Records, Tokens, packed
from stages.metrics.ranking import auroc
from stages.training import Run

CLOCK_S = 12.0
OPTIONS = {"features": 32, "queries": 2, "layers": 1, "heads": 2, "ffn": 64}
ENCODING = {"width": 32, "heads": 2, "sensor_layers": 1, "sensor_ffn": 32, "dropout": 0.0, "clock_s": CLOCK_S}
LEARNING = {"epochs": 12, "learning_rate": 3e-3, "classes_per_batch": 2, "per_class": 12, "modality_dropout": 0.0, "warmup": 0}


def welds(seed: int, count: int, offset_s: float) -> Records:
    """A crack is heard half a second before, or in a good weld after, the middle; the arc alone says when that is on the clock of the sound."""
    generator, world = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(5)
    arc, crack, current = (torch.randn(width, generator=world) for width in (16, 16, 6))
    found = []
    for number in range(count):
        bad, start = number % 2, 2.5 + float(torch.rand(1, generator=generator))
        late = offset_s * (2 * float(torch.rand(1, generator=generator)) - 1)
        middle = start + 3.0 + (-0.5 if bad else 0.5)

        def burning(time: torch.Tensor, start: float = start) -> torch.Tensor:
            return torch.sigmoid((time - start) * 8) * torch.sigmoid((start + 6 - time) * 8)

        steps, tokens = torch.linspace(0, 1, 96), torch.linspace(0, 1, 40)
        heard = tokens * CLOCK_S - late
        sensors = burning(steps * CLOCK_S)[:, None] * current + 0.3 * torch.randn(96, 6, generator=generator)
        sound = burning(heard)[:, None] * arc + torch.exp(-((heard - middle) ** 2) / 0.1)[:, None] * 2 * crack
        sound = sound + 0.3 * torch.randn(40, 16, generator=generator)
        found.append(
            Record(f"r{number}", {"series": Tokens(sensors, steps), "audio": Tokens(sound, tokens)}, bad, fault="early" if bad else "")
        )
    return packed(found, {"series": 6, "audio": 16})


def reached(offset_s: float, align: bool) -> float:
    train, val, test = (welds(seed, count, offset_s) for seed, count in enumerate((72, 60, 120)))
    options = {**OPTIONS, "encoding": {**ENCODING, "align": align}, "learning": LEARNING}
    detector = fusion.build("deep.cross_attention", options, at=("records", "models", "d")).fit(train, val, Run(seed=0, quiet=True))
    return auroc(detector.score(test).double().numpy(), test.label.numpy())


@pytest.mark.slow
def test_aligning_gives_back_most_of_what_clocks_two_seconds_apart_cost():
    exact, off, aligned = reached(0.0, False), reached(2.0, False), reached(2.0, True)
    print(f"AUROC on one clock {exact:.3f}, clocks up to 2 s apart {off:.3f}, aligned {aligned:.3f}")
    assert exact - off > 0.05
    assert exact - aligned < (exact - off) / 2
