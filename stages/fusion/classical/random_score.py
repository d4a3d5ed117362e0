"""A score that knows nothing but the name of a record: the row that shows what a metric gives for luck."""

from __future__ import annotations

import torch
from torch import Tensor

from stages.datasets.records import Records, RecordSet
from stages.fusion.detector import RecordDetector
from stages.seed import derive
from stages.training import Run


class RandomScore(RecordDetector):
    """Uniform in 0..1, the same for a record wherever it stands, whatever else is scored and whichever of its modalities are missing."""

    supervised = False
    blind = "looks at nothing of a record but its name"

    def prepare(self, widths: dict[str, int], seed: int) -> None:
        self.register_buffer("seed", torch.tensor([derive(seed, "score")]))

    def learn(self, train: RecordSet, val: RecordSet, run: Run) -> None:
        """What `prepare` drew is all there is."""

    def rate(self, records: Records) -> Tensor:
        seed = int(self.seed)
        drawn = [derive(seed, record_id) / 2**63 for record_id in records.record_id]
        return torch.tensor(drawn, dtype=torch.float64, device=self.seed.device)
