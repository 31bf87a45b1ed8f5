"""Weights split into a dense part of few bits and sparse outliers (FBGEMM, arXiv 2101.05615)."""

import torch
from torch import nn
from torch.nn import functional


class SplitLinear(nn.Module):
    """relu(dense(x) + x outliersᵀ), or without the ReLU: an int8 layer, and the weights left out of it in float."""

    def __init__(self, dense: nn.Module, outliers: torch.Tensor, *, relu: bool) -> None:
        super().__init__()
        self.dense = dense
        self.outliers = SparseProduct(outliers)
        self.relu = relu

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        sums: torch.Tensor = self.outliers(features).add_(self.dense(features))
        return sums.relu_() if self.relu else sums


class SparseProduct(nn.Module):
    """x Wᵀ (B, O) of x (B, K) and the few weights of W (O, K) that are not 0, kept by rows (CSR).

    An output is a weighted sum of the columns of x: a bag of embeddings, FBGEMM's sparse-lengths sum, over xᵀ.
    """

    columns: torch.Tensor
    offsets: torch.Tensor
    values: torch.Tensor

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        rows, columns = weight.nonzero(as_tuple=True)
        self.register_buffer("columns", columns)
        self.register_buffer("offsets", torch.searchsorted(rows, torch.arange(len(weight) + 1)))
        self.register_buffer("values", weight[rows, columns])

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        sums = torch.embedding_bag(
            functional.pad(features.t(), (0, 1)),  # PyTorch's kernel refuses rows of no columns, as of an empty batch
            self.columns,
            self.offsets,
            mode=0,  # sum
            per_sample_weights=self.values,
            include_last_offset=True,
        )[0]
        return sums.t()[:-1].contiguous()  # at large batches adding columns to rows takes three times as long as this


def split_outliers(weight: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """``weight`` without its outliers, and its outliers: each (O, K), 0 where the other has a number.

    Outliers are the ``share`` of the matrix that is largest in size. With as many, the largest of every row leave a
    larger error; choosing how many per row to minimise Σ_row (largest that is left)² gains a few percent more.
    """
    outliers = torch.zeros_like(weight)
    where = weight.abs().flatten().topk(round(share * weight.numel())).indices
    outliers.view(-1)[where] = weight.flatten()[where]
    return weight.masked_fill(outliers != 0, 0), outliers
