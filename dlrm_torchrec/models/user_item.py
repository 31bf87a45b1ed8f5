"""A model for data with one user and one item per row: it looks up a row for each and scores the two."""

from __future__ import annotations

import torch
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.embeddings.tables import Tables


class UserItemModel(nn.Module):
    """Logits (B, 1) that ``score`` computes from the row of the user and the row of the item, (B, dim) each.

    The features ``user`` and ``item`` have one id per row; all other columns of a batch are ignored.
    """

    def __init__(self, tables: Tables, user: str, item: str, score: nn.Module) -> None:
        super().__init__()
        features = [feature for config in tables.embedding_bag_configs() for feature in config.feature_names]
        if sorted(features) != sorted([user, item]):
            raise ValueError(
                f"tables must give one vector for the user {user!r} and one for the item {item!r}: got features "
                f"{sorted(features)}; name two one-hot features of the data, such as --columns user item, and do not "
                "use feature generation"
            )
        self.tables = tables
        self.user, self.item = user, item
        self.score = score

    def forward(self, _dense_features: torch.Tensor, sparse_features: KeyedJaggedTensor) -> torch.Tensor:
        """Logits (B, 1)."""
        pooled = self.tables(sparse_features)
        logits: torch.Tensor = self.score(pooled[self.user], pooled[self.item])
        return logits
