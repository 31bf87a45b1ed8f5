"""Bags of ids or of rows, and their sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

# (rows (R,), offsets (bags + 1,), weights (R,) or None) -> sums (bags, row dim)
LookUp = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


class Bags(NamedTuple):
    """Ids or rows of bags: ``values`` (R,) int64, ``lengths`` (bags,), ``weights`` (R,) or None."""

    values: torch.Tensor
    lengths: torch.Tensor
    weights: torch.Tensor | None


def one_each(rows: torch.Tensor) -> torch.Tensor:
    """Offsets of bags of one row."""
    return torch.arange(len(rows) + 1, device=rows.device)


def offsets_of(lengths: torch.Tensor) -> torch.Tensor:
    """Offsets (bags + 1,) of bags of these lengths."""
    offsets: torch.Tensor = torch.ops.fbgemm.asynchronous_complete_cumsum(lengths)
    return offsets


def pool(vectors: torch.Tensor, bags: Bags) -> torch.Tensor:
    """Sums (bags, dim) over each bag of one (weighted) vector per id."""
    if bags.weights is not None:
        vectors = vectors * bags.weights[:, None]
    if len(vectors) == len(bags.lengths) and not vectors.is_cuda and bool((bags.lengths == 1).all()):
        return vectors  # one-hot; a GPU would have to be waited for to know
    return torch.segment_reduce(vectors, "sum", lengths=bags.lengths, axis=0, unsafe=True)
