"""Nearest rows of a memory bank, by faiss: exact by default, approximate on request with the error it makes measured.

The index is never stored: it is made again from the bank. faiss gives row numbers only, and distances are computed from the rows
themselves, because faiss returns squared ones, rounded by |x|^2 + |m|^2 - 2xm, and not the same for every thread count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    import faiss
    import numpy as np

Search = Literal["flat", "torch", "hnsw", "ivf"]

HNSW_LINKS, HNSW_BUILD, HNSW_SEARCH = 32, 200, 16
IVF_PROBES = 8  # lists that are looked into, of 4 sqrt(M)
PRODUCT_QUERIES = 128  # at once: their distances to a few thousand rows stay in the cache, which saves a sixth
SELF_SEARCH = 4096  # queries at once when a bank is searched for its own neighbours


class Product:
    """Exact search by one matrix product, on the device of the bank and without a copy of it.

    On a CPU it takes half the time of faiss at 150 dimensions and a tenth more at 1,536; on a GPU it is the only search that stays there.
    """

    def __init__(self, bank: Tensor) -> None:
        self.bank, self.norms = bank, bank.square().sum(dim=1)

    def nearest(self, queries: Tensor, count: int) -> Tensor:
        return torch.cat([self._nearest(part, count) for part in queries.to(self.bank).split(PRODUCT_QUERIES)])

    def _nearest(self, queries: Tensor, count: int) -> Tensor:
        distances = torch.addmm(self.norms, queries, self.bank.T, alpha=-2)  # squared, less |x|^2
        return distances.argmin(dim=1, keepdim=True) if count == 1 else distances.topk(count, largest=False).indices


def build_index(bank: Tensor, search: Search = "flat") -> Product | faiss.Index:
    """What `nearest` looks into for the (M, D) rows. `hnsw` and `ivf` are faster on large banks and may miss the nearest row."""
    if search == "torch":
        return Product(bank)
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    rows, width = bank.shape
    if search == "flat":
        index = faiss.IndexFlatL2(width)
    elif search == "hnsw":
        index = faiss.IndexHNSWFlat(width, HNSW_LINKS)
        index.hnsw.efConstruction, index.hnsw.efSearch = HNSW_BUILD, HNSW_SEARCH
    else:
        lists = max(1, min(int(4 * rows**0.5), rows // 39))  # faiss wants 39 rows to learn a list from
        index = faiss.IndexIVFFlat(faiss.IndexFlatL2(width), width, lists)
        index.nprobe = min(IVF_PROBES, lists)
        index.train(_numpy(bank))
    index.add(_numpy(bank))
    return index


def nearest(index: Product | faiss.Index, queries: Tensor, count: int = 1) -> Tensor:
    """(N, count) int64 numbers of the nearest rows, nearest first, for (N, D) queries. `count` must not exceed the rows.

    Where an approximate index finds nothing it says row 0, so that its distances are never too short.
    """
    if isinstance(index, Product):
        return index.nearest(queries, count)
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    _, rows = index.search(_numpy(queries), count)
    return torch.from_numpy(rows).clamp_(min=0).to(queries.device)


def distances(queries: Tensor, rows: Tensor) -> Tensor:
    """L2 distances, not squared, between tensors that broadcast to (..., D), in float32 whatever came."""
    return (queries.float() - rows.float()).norm(dim=-1)


def own_neighbours(bank: Tensor, count: int) -> Tensor:
    """(M, count) int64: the `count` rows nearest to each row of the bank, itself among them."""
    index = build_index(bank)
    found = torch.cat([nearest(index, part, count) for part in bank.split(SELF_SEARCH)])
    own = torch.arange(len(bank), device=bank.device)
    crowded_out = (found != own[:, None]).all(dim=1)  # by more than `count` copies of itself
    found[crowded_out, -1] = own[crowded_out]
    return found


def _numpy(rows: Tensor) -> np.ndarray:
    return rows.detach().to("cpu", torch.float32).contiguous().numpy()
