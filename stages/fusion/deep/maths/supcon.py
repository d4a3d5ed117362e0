"""Supervised contrastive loss: records of one class draw together, all others stay apart.

Khosla et al., "Supervised Contrastive Learning", arXiv:2004.11362, equation 2 (L_out: the mean over positives stands outside the logarithm). Every view of
every record is an anchor once; its positives are all other views of its class. Deviations:
- An anchor without a positive is left out of the mean; the published code divides by the number of all anchors, so that it would count as a loss of 0.
- Hard negatives (Robinson et al., "Contrastive Learning with Hard Negative Samples", arXiv:2010.04592, equation 4, without the correction for false negatives:
  labels say which they are): each negative of an anchor counts exp(beta * cosine), scaled so that the mean over its negatives is 1; beta 0 is the plain loss.
  The authors weigh by the cosine over tau; at tau .07 that leaves the one hardest negative.

B records, V views of each, D width, A = B * V anchors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SupConLoss(nn.Module):
    """tau: temperature, above 0. hard_negatives: beta, 0 or more."""

    def __init__(self, tau: float = 0.07, hard_negatives: float = 0.0) -> None:
        if not tau > 0 or hard_negatives < 0:
            raise ValueError(f"tau must be above 0 and hard_negatives at least 0, got {tau} and {hard_negatives}")
        super().__init__()
        self.tau, self.hard_negatives = tau, hard_negatives

    def forward(self, features: Tensor, label: Tensor | None = None) -> Tensor:
        """One number, at least 0; 0 with a gradient of 0 where no anchor has a positive.

        features: (B, V, D), of unit length. label: (B,) int; None makes each record a class of its own, which is NT-Xent (SimCLR, arXiv:2002.05709).
        """
        if features.ndim != 3:
            raise ValueError(f"features must be (records, views, width), got {tuple(features.shape)}")
        records, views, _ = features.shape
        label = torch.arange(records, device=features.device) if label is None else label
        if label.shape != (records,):
            raise ValueError(f"label must be ({records},), one of each record, got {tuple(label.shape)}")
        flat, kind = features.flatten(0, 1), label.repeat_interleave(views)  # (A, D), (A,)
        flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
        with torch.autocast(flat.device.type, enabled=False):  # a cosine in bfloat16 is off by .004, over tau by .05
            cosine = flat @ flat.T
        other = ~torch.eye(len(flat), dtype=torch.bool, device=flat.device)
        positive = (kind[:, None] == kind) & other
        log_share = self._log_share(cosine, positive, other)
        count = positive.sum(1)
        per_anchor = -log_share.masked_fill(~positive, 0.0).sum(1) / count.clamp(min=1)
        return per_anchor.sum() / (count > 0).sum().clamp(min=1)

    def _log_share(self, cosine: Tensor, positive: Tensor, other: Tensor) -> Tensor:
        """(A, A) the logarithm of what an anchor gives to another, of all that it gives to the others."""
        logits = cosine / self.tau
        weighed = logits
        if self.hard_negatives:
            negative = other & ~positive
            raised = (self.hard_negatives * cosine).masked_fill(~negative, -torch.inf)
            total = raised.logsumexp(1, keepdim=True).masked_fill(~negative.any(1, keepdim=True), 0.0)
            log_weight = raised - total + negative.sum(1, keepdim=True).clamp(min=1).log()
            weighed = logits + log_weight.masked_fill(~negative, 0.0)
        weighed = weighed.masked_fill(~other, -torch.inf)
        most = weighed.detach().amax(1, keepdim=True)
        most = most.masked_fill(most.isinf(), 0.0)  # of a single anchor, which has no other
        summed = (weighed - most).exp().sum(1, keepdim=True)
        return logits - most - summed.masked_fill(summed == 0, 1.0).log()
