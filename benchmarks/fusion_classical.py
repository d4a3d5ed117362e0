"""What the plain detectors of records cost: processor seconds of one thread for 500 records to learn from, 200 to validate with and 1,000 to score.

    OMP_NUM_THREADS=1 python -m benchmarks.fusion_classical

prints the table of docs/fusion_baselines.md. The records are as wide and as long as those of `station`; one modality in five is missing. Processor time
does not mind what else runs on the machine, as wall time does. One record is scored alone, as at a line.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from stages import fusion
from stages.datasets.records import Ragged, Records
from stages.training import Run

WIDTHS = {"text": 384, "image": 320, "video": 320, "audio": 128, "series": 48}
TOKENS = {"text": 3, "image": 6, "video": 8, "audio": 20, "series": 20}
REPEATS = 30
OPTIONS = {"classical.unimodal": {"modality": "text"}}


def main() -> None:
    import sklearn.covariance
    import sklearn.linear_model  # noqa: F401  importing is no part of learning

    torch.set_num_threads(1)
    train, val, test = (made(seed, count) for seed, count in enumerate((500, 200, 1000)))
    print("| row | learn, s | score 1,000, s | one record, ms | stored, MB |\n| --- | ---: | ---: | ---: | ---: |")
    for name in fusion.known():
        if name.startswith("classical."):
            print(row(name, train, val, test), flush=True)


def made(seed: int, count: int) -> Records:
    """Noise, and in every modality of an anomalous record a shift of one column in ten."""
    random = np.random.default_rng(seed)
    label = np.arange(count) % 2
    tokens = {name: modality(random, label, width, TOKENS[name]) for name, width in WIDTHS.items()}
    names = [f"r{seed}-{number}" for number in range(count)]
    given = Records(names, torch.from_numpy(label.astype(np.int8)), tokens)
    return given.take(given.present.any(1).nonzero()[:, 0].tolist())


def modality(random: np.random.Generator, label: np.ndarray, width: int, tokens: int) -> Ragged:
    lengths = np.where(random.random(len(label)) < 0.2, 0, tokens)
    owner = np.repeat(np.arange(len(label)), lengths)
    values = random.standard_normal((len(owner), width), dtype=np.float32)
    values[:, ::10] += 0.2 * label[owner][:, None]
    offsets = torch.from_numpy(np.concatenate([[0], lengths.cumsum()]))
    return Ragged(torch.from_numpy(values), torch.zeros(len(values)), offsets)


def row(name: str, train: Records, val: Records, test: Records) -> str:
    detector = fusion.build(name, OPTIONS.get(name, {}), at=())
    learn = seconds(lambda: detector.fit(train, val, Run(seed=0, quiet=True)))
    score = seconds(lambda: detector.score(test))
    alone = test.take([0])
    one = seconds(lambda: [detector.score(alone) for _ in range(REPEATS)]) / REPEATS
    stored = sum(tensor.numel() * tensor.element_size() for tensor in detector.state_dict().values())
    return f"| `{name.removeprefix('classical.')}` | {learn:.2f} | {score:.2f} | {1000 * one:.2f} | {stored / 1e6:.2f} |"


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


if __name__ == "__main__":
    main()
