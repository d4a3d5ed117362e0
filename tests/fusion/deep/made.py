"""Small records of a weld's kind: every class leaves its own mark in every modality, so that small networks can learn all of them."""

import torch

from stages import fusion
from stages.datasets.records import Ragged, Records

WIDTHS = {"video": 10, "image": 8, "audio": 6, "series": 4}
LENGTHS = {"video": 4, "image": 3, "audio": 5, "series": 21}
TINY = {"encoding": {"width": 16, "heads": 2, "sensor_layers": 1, "sensor_ffn": 32, "patch": 4}, "features": 32}
NETWORKS = {
    "deep.cross_attention": {"queries": 2, "layers": 1, "heads": 2, "ffn": 32},
    "deep.gated": {},
    "deep.late": {},
    "deep.mid": {},
    "deep.unimodal": {"modality": "video"},
}


def welds(seed: int, classes: int = 12, each: int = 2, strength: float = 1.0, missing: float = 0.0) -> Records:
    """`each` records of every class; class 0 is normal. missing: the chance of each modality but the first to be absent."""
    draw, world = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(7)
    kind = torch.arange(classes).repeat_interleave(each)
    tokens = {}
    for number, (name, width) in enumerate(WIDTHS.items()):
        marks = torch.randn(classes, width, generator=world)
        values = torch.randn(len(kind), LENGTHS[name], width, generator=draw) + strength * marks[kind][:, None]
        there = torch.rand(len(kind), generator=draw) >= (missing if number else 0.0)
        lengths = LENGTHS[name] * there
        time = torch.linspace(0, 1, LENGTHS[name]).expand(len(kind), -1)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        tokens[name] = Ragged(values[there].flatten(0, 1), time[there].flatten(), offsets)
    faults = ["" if one == 0 else f"fault_{one:02d}" for one in kind.tolist()]
    return Records([f"w{seed}-{number:03d}" for number in range(len(kind))], (kind > 0).to(torch.int8), tokens, faults)


def built(name: str, **learning):
    return fusion.build(name, {**TINY, **NETWORKS[name], "learning": learning}, at=("records", "models", name))
