"""Factorisation machines (Rendle, ICDM 2010) and DeepFM (arXiv 1703.04247) over embedding tables and dense columns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torchrec.models.dlrm import OverArch, SparseArch
from torchrec.modules import deepfm
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.embeddings.tables import Tables


class FactorizationMachine(nn.Module):
    """Logits b + Σ w_i x_i + Σ_{i<j} <v_i, v_j> x_i x_j over ids (as one-hot inputs) and dense columns.

    A row of a table is (w_i, v_i), so one lookup fetches both. FBGEMM needs a dim that is a multiple of 4; with w_i
    inside the row, such a dim holds dim - 1 factors and no padding. A bag of ids counts as one feature whose vector is
    the sum of their rows, as in DLRM. Ids therefore interact with ids of other features but not with ids of their own
    bag: that would need unpooled rows.
    """

    def __init__(self, tables: Tables, dense_in_features: int, dense_device: torch.device | None = None) -> None:
        """All ``tables`` must have the same dim, at least 2."""
        super().__init__()
        self.sparse_arch = SparseArch(tables)
        self.dense_arch = DenseRows(dense_in_features, self.sparse_arch.D, dense_device)
        self.inter_arch = Pairs(dense_device)

    def rows(self, dense_features: torch.Tensor, sparse_features: KeyedJaggedTensor) -> torch.Tensor:
        """x_i (w_i, v_i) for every feature: (B, dense + sparse features, dim)."""
        return torch.cat((self.dense_arch(dense_features), self.sparse_arch(sparse_features)), dim=1)

    def forward(self, dense_features: torch.Tensor, sparse_features: KeyedJaggedTensor) -> torch.Tensor:
        """Logits (B, 1)."""
        logits: torch.Tensor = self.inter_arch(self.rows(dense_features, sparse_features))
        return logits


class DeepFM(FactorizationMachine):
    """The sum of a factorisation machine and an MLP over the same v_i.

    Only the deep part comes from TorchRec. ``torchrec.modules.deepfm.FactorizationMachine`` is not used because it
    does not compute dot products: it multiplies every pair of single numbers, also across factors and within a vector.
    """

    def __init__(
        self, tables: Tables, dense_in_features: int, deep: Sequence[int], dense_device: torch.device | None = None
    ) -> None:
        """``deep`` holds the widths of the MLP; the last one is 1."""
        super().__init__(tables, dense_in_features, dense_device)
        numbers = (dense_in_features + self.sparse_arch.F) * (self.sparse_arch.D - 1)
        self.over_arch = deepfm.DeepFM(OverArch(numbers, list(deep), dense_device))

    def forward(self, dense_features: torch.Tensor, sparse_features: KeyedJaggedTensor) -> torch.Tensor:
        """Logits (B, 1)."""
        rows = self.rows(dense_features, sparse_features)
        logits: torch.Tensor = self.inter_arch(rows) + self.over_arch([rows[:, :, 1:]])
        return logits


class DenseRows(nn.Module):
    """Maps n dense columns (B, n) to (B, n, dim): each column is multiplied by a learned row of its own.

    The rows start with the same distribution as those of a table of n rows.
    """

    def __init__(self, columns: int, dim: int, device: torch.device | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(columns, dim, device=device))
        limit = max(1, columns) ** -0.5
        nn.init.uniform_(self.weight, -limit, limit)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features.unsqueeze(2) * self.weight


class Pairs(nn.Module):
    """Logits (B, 1) from the rows (B, n, dim) of n features, by ``Σ_{i<j} <a_i, a_j> = ½ (|Σ a_i|² - Σ |a_i|²)``.

    The cost is linear in n (Rendle 2010, lemma 3.1).
    """

    def __init__(self, device: torch.device | None = None) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, device=device))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        linear, factors = rows[:, :, :1].sum(dim=1), rows[:, :, 1:]
        pairs = factors.sum(dim=1).square() - factors.square().sum(dim=1)
        return self.bias + linear + pairs.sum(dim=1, keepdim=True) / 2
