"""DLRM without dot products: ``--arch-interaction-op=cat`` in the code of arXiv 1906.00091."""

from __future__ import annotations

import torch
from torch import nn
from torchrec.models.dlrm import DLRM, OverArch

from dlrm_torchrec.embeddings.tables import Tables


class DLRMCat(DLRM):
    """A DLRM whose top MLP gets the dense vector and the F pooled vectors concatenated: (F + 1) D numbers."""

    def __init__(  # noqa: PLR0917  # as DLRM
        self,
        embedding_bag_collection: Tables,
        dense_in_features: int,
        dense_arch_layer_sizes: list[int],
        over_arch_layer_sizes: list[int],
        dense_device: torch.device | None = None,
    ) -> None:
        super().__init__(
            embedding_bag_collection, dense_in_features, dense_arch_layer_sizes, over_arch_layer_sizes, dense_device
        )
        numbers = (self.sparse_arch.F + 1) * self.sparse_arch.D
        self.inter_arch = Concatenation()
        self.over_arch = OverArch(numbers, over_arch_layer_sizes, dense_device)


class Concatenation(nn.Module):
    """Concatenates the dense vector (B, D) and the pooled vectors (B, F, D) to (B, D + F D)."""

    def forward(self, dense_features: torch.Tensor, sparse_features: torch.Tensor) -> torch.Tensor:
        return torch.cat((dense_features, sparse_features.flatten(1)), dim=1)
