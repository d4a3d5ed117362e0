"""Records made up for tests of the Perceiver: what is anomalous shows in some modalities, of others there may be any number of tokens or none."""

from __future__ import annotations

import torch

from stages.datasets.records import Record, Records, Tokens, packed

WIDTHS = {"text": 6, "image": 8, "video": 5, "audio": 7, "series": 4}
SMALL = {"width": 16, "latents": 4, "heads": 2, "blocks": 2, "experts": 4, "hidden": 24, "batch_size": 16, "learning_rate": 3e-3}


def drawn(
    count: int, seed: int = 0, missing: float = 0.2, strength: float = 1.5, most: int = 6, shows: tuple[str, ...] = tuple(WIDTHS)
) -> Records:
    """Half of them anomalous: all tokens of `shows` are then moved by `strength` in one direction. Every record has at least one modality."""
    draw, direction = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(99)
    ways = {name: torch.nn.functional.normalize(torch.randn(width, generator=direction), dim=0) for name, width in WIDTHS.items()}
    found = []
    for number in range(count):
        label, modalities = number % 2, {}
        gone = torch.rand(len(WIDTHS), generator=draw) < missing
        gone[int(torch.randint(len(WIDTHS), (1,), generator=draw))] = False
        for name, absent in zip(WIDTHS, gone.tolist()):
            length = int(torch.randint(1, most + 1, (1,), generator=draw))
            values = torch.randn(length, WIDTHS[name], generator=draw)
            if not absent:
                moved = values + label * (name in shows) * strength * ways[name]
                modalities[name] = Tokens(moved, torch.linspace(0, 1, length))
        found.append(Record(f"r{number}", modalities, label))
    return packed(found, WIDTHS)
