"""Weights split into a dense part of few bits and sparse outliers (FBGEMM, arXiv 2101.05615)."""

import torch
from torch import nn
from torch.nn import functional


class SplitLinear(nn.Module):
    """relu(dense(x) + x outliersᵀ), or the same without ReLU: an int8 layer plus the outlier weights in float."""

    def __init__(self, dense: nn.Module, outliers: torch.Tensor, *, relu: bool) -> None:
        super().__init__()
        self.dense = dense
        self.outliers = SparseProduct(outliers)
        self.relu = relu

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        sums: torch.Tensor = self.outliers(features).add_(self.dense(features))
        return sums.relu_() if self.relu else sums


class SparseProduct(nn.Module):
    """x Wᵀ (B, O) for x (B, K) and a sparse W (O, K), whose few weights that are not 0 are stored by rows (CSR).

    An output is a weighted sum of columns of x, which is a bag of embeddings (FBGEMM's sparse-lengths sum) over xᵀ.
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
            functional.pad(features.t(), (0, 1)),  # PyTorch's kernel refuses the rows of an empty batch: no columns
            self.columns,
            self.offsets,
            mode=0,  # sum
            per_sample_weights=self.values,
            include_last_offset=True,
        )[0]
        return sums.t()[:-1].contiguous()  # for large batches this takes a third of the time of adding columns to rows


def split_outliers(weight: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """``weight`` without its outliers, and the outliers; each is (O, K) and is 0 where the other has a number.

    Outliers are the ``share`` of the matrix with the largest magnitudes. Taking equally many outliers from every row
    would leave a larger error. Choosing the number per row to minimise Σ_row (largest remaining weight)² would gain a
    few percent.
    """
    outliers = torch.zeros_like(weight)
    where = weight.abs().flatten().topk(round(share * weight.numel())).indices
    outliers.view(-1)[where] = weight.flatten()[where]
    return weight.masked_fill(outliers != 0, 0), outliers
