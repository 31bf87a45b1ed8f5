"""Bags of ids or of rows, and their sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

# (rows (R,), offsets (bags + 1,), weights (R,) or None) -> sums (bags, row dim)
LookUp = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


class Bags(NamedTuple):
    """Bags of ids or rows: ``values`` (R,) int64, ``lengths`` (bags,), ``weights`` (R,) or None."""

    values: torch.Tensor
    lengths: torch.Tensor
    weights: torch.Tensor | None
    per_feature: list[int] | None = None  # how many values each feature has, where the host knows it


def one_each(rows: torch.Tensor) -> Bags:
    """Bags that hold one row each."""
    return Bags(rows, torch.ones_like(rows), None)


def offsets_of(lengths: torch.Tensor) -> torch.Tensor:
    """Offsets (bags + 1,) of bags with these lengths."""
    offsets: torch.Tensor = torch.ops.fbgemm.asynchronous_complete_cumsum(lengths)
    return offsets


def pool(vectors: torch.Tensor, bags: Bags) -> torch.Tensor:
    """The sum over each bag (bags, dim), from one vector per id, multiplied by the id's weight if there are weights."""
    if bags.weights is not None:
        vectors = vectors * bags.weights[:, None]
    if len(vectors) == len(bags.lengths) and not vectors.is_cuda and bool((bags.lengths == 1).all()):
        return vectors  # one-hot; on a GPU, finding that out would mean waiting for it
    return torch.segment_reduce(vectors, "sum", lengths=bags.lengths, axis=0, unsafe=True)
