"""Random forest (Breiman, Machine Learning 45, 2001) over pooled modalities and which of them are there; it tells kinds of fault.

Shown the setting alone (`modalities: [setpoint]` of its row) it is the control that any look at a process has to beat: trees cut a table of set values
into the cells that belong to one class, which is how a setting gives a label away. Shown the duration or the session alone it does the same for these.
`blind` then says what it does not look at.

scikit-learn grows the trees; they are kept as tensors and walked here, all trees and records at once, so that nothing is unpickled and a score needs
no scikit-learn. Trees are grown without limit, the probability of a class is the mean of its share in the leaves. Deviation: a logit needs a probability
that is neither 0 nor 1, so that half a tree more, which says the same of all classes, is asked before the logarithm is taken.

B records, C classes, E trees, N nodes of all trees.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from stages.datasets.records import Records, RecordSet, batches
from stages.fusion.classical.pooled import Pool, Rows
from stages.fusion.detector import Classified, RecordDetector, class_of
from stages.seed import derive
from stages.training import Run

WALKED = 512  # records at once: of 200 trees their places take under a megabyte


class Forest(RecordDetector):
    """trees: E. leaf: records that a leaf has at least. spread: see `pooled`. blind: what it does not look at, where it is a control."""

    telling = True

    def __init__(self, *, trees: int = 200, leaf: int = 1, spread: bool = False, blind: str = "") -> None:
        if trees < 1 or leaf < 1:
            raise ValueError(f"expected trees and leaf of at least 1, got {trees} and {leaf}")
        super().__init__()
        self.trees, self.leaf, self.spread, self.blind = trees, leaf, spread, blind or None

    def prepare(self, widths: dict[str, int], seed: int) -> None:
        self.pool = Pool(widths, self.spread)
        self.register_buffer("root", torch.empty(0, dtype=torch.int64))  # (E,)
        self.register_buffer("column", torch.empty(0, dtype=torch.int64))  # (N,) that a node compares
        self.register_buffer("limit", torch.empty(0, dtype=torch.float64))  # (N,): at most this goes left
        self.register_buffer("child", torch.empty(0, dtype=torch.int64))  # (N, 2); a leaf is its own
        self.register_buffer("share", torch.empty(0, dtype=torch.float64))  # (N, C) of the classes among what ended there
        self.register_buffer("depth", torch.zeros(1, dtype=torch.int64))  # of the deepest tree

    def learn(self, train: RecordSet, val: RecordSet, run: Run) -> None:
        from sklearn.ensemble import RandomForestClassifier

        rows = self.pool.learn(map(self.fitting, batches(train)))
        grown = RandomForestClassifier(self.trees, min_samples_leaf=self.leaf, random_state=derive(run.seed, "forest") % 2**32, n_jobs=1)
        grown.fit(_columns(rows).cpu().numpy(), class_of(train, self.classes).numpy())
        self._keep([one.tree_ for one in grown.estimators_])

    def rate(self, records: Records) -> Tensor:
        logits = self._logits(self.pool(records))
        return logits[:, 1:].logsumexp(dim=1) - logits[:, 0]

    def tell(self, records: Records) -> Classified:
        rows = self.pool(records)
        return Classified(self._logits(rows).float(), normalize(_columns(rows), dim=1))

    def probability(self, records: Records) -> Tensor:
        """(B, C) float64, as scikit-learn's forest gives it: the mean of the shares in the leaves. Records as `fitting` gives them."""
        return self._walked(self.pool(records))

    def _walked(self, rows: Rows) -> Tensor:
        return torch.cat([self._leaves(part) for part in _columns(rows).split(WALKED)])

    def _leaves(self, values: Tensor) -> Tensor:
        """(B, D) to (B, C): every record starts at every root and takes as many steps as the deepest tree has."""
        node = self.root[:, None].expand(-1, len(values))
        record = torch.arange(len(values), device=values.device).expand_as(node)
        for _ in range(int(self.depth)):
            right = values[record, self.column[node]] > self.limit[node]
            node = self.child[node, right.long()]
        return self.share[node].mean(dim=0)

    def _logits(self, rows: Rows) -> Tensor:
        """(B, C) float64; their softmax is the probability, half a tree of no opinion included."""
        return (self._walked(rows) + 0.5 / (len(self.classes) * self.trees)).log()

    def _keep(self, trees: list) -> None:
        """scikit-learn's trees, one behind another."""
        sizes = torch.tensor([tree.node_count for tree in trees])
        self.root = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)[:-1]])
        children, columns, limits, shares = [], [], [], []
        for first, tree in zip(self.root, trees, strict=True):
            own = first + torch.arange(tree.node_count)
            below = first + torch.from_numpy(_pair(tree))
            leaf = torch.from_numpy(tree.children_left < 0)
            children.append(torch.where(leaf[:, None], own[:, None], below))
            columns.append(torch.from_numpy(tree.feature.astype("int64")).clamp(min=0))
            limits.append(torch.from_numpy(tree.threshold.copy()))
            share = torch.from_numpy(tree.value[:, 0].astype("float64"))
            shares.append(share / share.sum(dim=1, keepdim=True))
        self.child, self.column, self.limit, self.share = torch.cat(children), torch.cat(columns), torch.cat(limits), torch.cat(shares)
        self.depth = torch.tensor([max(tree.max_depth for tree in trees)])


def _columns(rows: Rows) -> Tensor:
    """(B, D) float32: the pooled values, then 1 for each modality that is there."""
    return torch.cat([rows.together, rows.present.float()], dim=1)


def _pair(tree) -> np.ndarray:
    """(N, 2) int64: where the left and the right go; -1 of a leaf."""
    return np.stack([tree.children_left, tree.children_right], axis=1).astype("int64")
