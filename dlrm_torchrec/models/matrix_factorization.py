"""Matrix factorisation with biases."""

from __future__ import annotations

import torch
from torch import nn


class MatrixFactorization(nn.Module):
    """mu + b_u + b_i + <p_u, q_i> (Koren, Bell, Volinsky, IEEE Computer 42(8), 2009): dim - 1 MACs per sample.

    A row of a table holds ``dim - 1`` factors and then the bias, so both share one lookup, one optimizer step and one
    shard, and dim can be a multiple of 4, as FBGEMM needs. mu is the only dense parameter.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(1, device=device))

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        """Logits (B, 1) from the row of the user and the row of the item, (B, dim) each."""
        products = (user[:, :-1] * item[:, :-1]).sum(dim=1, keepdim=True)
        return self.mean + user[:, -1:] + item[:, -1:] + products

    def served(self) -> nn.Module:
        """The logits of all pairs of users and items."""
        return AllPairs(self)


class AllPairs(nn.Module):
    """Logits (B, n) of all pairs of B users and n items, by one product of matrices."""

    def __init__(self, trained: MatrixFactorization) -> None:
        super().__init__()
        self.mean = trained.mean

    def forward(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        products = users[:, :-1] @ items[:, :-1].T
        return self.mean + users[:, -1:] + items[:, -1] + products
