"""Logistic regression over embedding tables and dense columns: the floor that any other model has to beat."""

from __future__ import annotations

import torch
from torch import nn
from torchrec.models.dlrm import SparseArch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.embeddings.tables import Tables

DIM = 4  # the smallest that FBGEMM has; all columns of a row count alike
_SCALE = 0.1  # of what a table holds, so that random initial rows are close to 0


class LogisticRegression(nn.Module):
    """Logits b + Σ w_i x_i over ids, as one-hot inputs, and dense columns x_i.

    The weight of an id is a tenth of the sum of its row, in a table of ``DIM`` columns. A bag of ids counts with the
    sum of their weights.
    """

    def __init__(self, tables: Tables, dense_in_features: int, dense_device: torch.device | None = None) -> None:
        super().__init__()
        self.sparse_arch = SparseArch(tables)
        self.over_arch = nn.Linear(dense_in_features, 1, device=dense_device)
        nn.init.zeros_(self.over_arch.weight)
        nn.init.zeros_(self.over_arch.bias)

    def forward(self, dense_features: torch.Tensor, sparse_features: KeyedJaggedTensor) -> torch.Tensor:
        """Logits (B, 1)."""
        ids: torch.Tensor = _SCALE * self.sparse_arch(sparse_features).flatten(1).sum(1, keepdim=True)
        logits: torch.Tensor = ids + self.over_arch(dense_features)
        return logits
