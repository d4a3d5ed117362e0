"""Isolation forest: random cuts part an outlier from the rest after a few of them (Liu, Ting and Zhou, 2008). Each step by itself.

scikit-learn grows the trees; they are kept as tensors and walked here, all trees and steps at once, so that nothing is unpickled and a score needs no
scikit-learn. Score: 2^(-E[h] / c(n)), in 0..1, the paper's; h counts the cuts down to a leaf and, for the m training steps that ended there, c(m) more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stages.seed import derive
from stages.timeseries.detector import SeriesDetector, Stretch
from stages.training import Run
from stages.types import Refusal

STEPS = 4096  # walked at once: 100 trees of them are 3 MB for each array of node numbers


class IsolationForest(SeriesDetector):
    """E trees of at most N nodes; a leaf is its own child, so that a walk of the deepest tree's length ends in a leaf everywhere."""

    def __init__(self, *, trees: int = 100, samples: int = 256) -> None:
        if trees < 1 or samples < 2:
            raise ValueError(f"expected trees >= 1 and samples >= 2, got {trees} and {samples}")
        super().__init__()
        self.trees, self.samples = trees, samples
        self.register_buffer("variable", torch.empty(0, dtype=torch.int64))  # (E, N) that a node compares
        self.register_buffer("limit", torch.empty(0, dtype=torch.float64))  # (E, N): at most this goes left
        self.register_buffer("child", torch.empty(0, dtype=torch.int64))  # (E, N, 2)
        self.register_buffer("path", torch.empty(0, dtype=torch.float64))  # (E, N) cuts down to a leaf, c(m) included
        self.register_buffer("depth", torch.empty(0, dtype=torch.int64))  # (1,) of the deepest tree
        self.register_buffer("typical", torch.empty(0, dtype=torch.float64))  # (1,) c(n)

    def learn(self, train: Sequence[Stretch], val: Sequence[Stretch], run: Run) -> None:
        from sklearn.ensemble import IsolationForest as Forest

        rows = torch.cat([stretch.values for stretch in train])
        if len(rows) < 2:
            raise Refusal("an isolation forest needs at least 2 training steps, there is one")
        samples = min(self.samples, len(rows))
        forest = Forest(n_estimators=self.trees, max_samples=samples, random_state=derive(run.seed, "forest") % 2**32).fit(rows.numpy())
        trees = [estimator.tree_ for estimator in forest.estimators_]
        self.variable, self.limit, self.child, self.path = (torch.stack(parts) for parts in zip(*map(self._packed, trees)))
        self.depth = torch.tensor([max(tree.max_depth for tree in trees)])
        self.typical = torch.tensor([expected_path(samples)], dtype=torch.float64)

    def rate(self, values: Tensor) -> Tensor:
        return torch.cat([self._isolation(part) for part in values.split(STEPS)])

    def _isolation(self, values: Tensor) -> Tensor:
        """(n,): every step starts at the root of every tree and takes as many cuts as the deepest tree has."""
        tree = torch.arange(len(self.variable), device=values.device)[:, None]
        node = tree.new_zeros(len(tree), len(values))
        step = torch.arange(len(values), device=values.device).expand_as(node)
        for _ in range(int(self.depth)):
            right = values[step, self.variable[tree, node]] > self.limit[tree, node]
            node = self.child[tree, node, right.long()]
        mean = self.path[tree, node].mean(dim=0)
        return 2 ** (-mean / self.typical)

    def _packed(self, tree) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One tree of scikit-learn, filled up with nodes that nothing leads to."""
        width = 2 * self.samples - 1
        leaf = tree.children_left < 0
        own = torch.arange(tree.node_count)
        children = torch.stack([torch.from_numpy(side.astype("int64")) for side in (tree.children_left, tree.children_right)], dim=1)
        children = torch.where(torch.from_numpy(leaf)[:, None], own[:, None], children)
        depth = torch.zeros(tree.node_count, dtype=torch.float64)
        for node in range(tree.node_count):  # parents come before their children
            if not leaf[node]:
                depth[children[node]] = depth[node] + 1
        path = depth + torch.tensor([expected_path(int(count)) for count in tree.n_node_samples], dtype=torch.float64)
        variable = torch.from_numpy(tree.feature.astype("int64")).clamp(min=0)
        packed = (variable, torch.from_numpy(tree.threshold.copy()), children, path)
        return tuple(torch.cat([part, part.new_zeros(width - len(part), *part.shape[1:])]) for part in packed)


def expected_path(count: int) -> float:
    """c(n): the mean number of cuts that part one of `count` rows from the others in a random tree."""
    if count <= 2:
        return float(count == 2)
    return 2 * (math.log(count - 1) + 0.5772156649015329) - 2 * (count - 1) / count
