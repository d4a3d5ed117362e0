"""A linear forecast: each value is predicted from the last p steps of all variables, and a step is as anomalous as it is surprising.

Ridge regression in closed form, W = (X'X + alpha I)^-1 X'Y, a vector autoregression (the linear stand-in for the forecasting networks, which often
learn no more). Score: the mean over the variables of the squared error, each in units of its own on the training data. The first p steps of a series
have the first value repeated before them. There is no intercept: standardised values have none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from stages.timeseries.classical.windows import flat_windows, long_enough
from stages.timeseries.detector import SeriesDetector, Stretch
from stages.training import Run

FLOOR = 1e-3  # least error variance, of the 1 that a standardised variable has


class Ridge(SeriesDetector):
    """Error of the next-step forecast from the last `lags` steps."""

    def __init__(self, *, lags: int = 20, alpha: float = 1.0) -> None:
        if lags < 1 or alpha <= 0:
            raise ValueError(f"expected lags >= 1 and alpha > 0, got {lags} and {alpha}")
        super().__init__()
        self.lags, self.alpha, self.past = lags, alpha, lags
        for name in ("weight", "variance"):
            self.register_buffer(name, torch.empty(0, dtype=torch.float64))

    def learn(self, train: Sequence[Stretch], val: Sequence[Stretch], run: Run) -> None:
        series = long_enough(train, self.lags + 1)
        gram = sum(past.T @ past for past, _ in self._pairs(series))
        moment = sum(past.T @ now for past, now in self._pairs(series))
        self.weight = torch.linalg.solve(gram + self.alpha * torch.eye(len(gram), dtype=gram.dtype), moment)
        errors = sum((now - past @ self.weight).square().sum(dim=0) for past, now in self._pairs(series))
        self.variance = (errors / sum(len(values) - self.lags for values in series)).clamp(min=FLOOR)

    def rate(self, values: Tensor) -> Tensor:
        return self._terms(values).mean(dim=1)

    @torch.no_grad()
    def attribution(self, values: Tensor) -> Tensor:
        """(T, V): the squared errors whose mean is the score."""
        return self._terms(self.standardised(values)).float()

    def _terms(self, values: Tensor) -> Tensor:
        padded = torch.cat([values[:1].expand(self.lags, -1), values])
        return torch.cat([(now - past @ self.weight).square() / self.variance for past, now in self._pairs([padded])])

    def _pairs(self, series: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Chunks of (n, V * lags) past and (n, V) present, float64."""
        for values in series:
            present = values[self.lags :].double()
            for rows in flat_windows(values[:-1], self.lags):
                now, present = present[: len(rows)], present[len(rows) :]
                yield rows.double(), now
