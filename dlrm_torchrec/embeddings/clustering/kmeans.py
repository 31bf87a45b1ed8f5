"""Weighted k-means: Lloyd's steps from k-means++ (Arthur and Vassilvitskii 2007), the same for the same seed.

It is written here because none of our dependencies has k-means, and a table needs nothing but products of matrices.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

_ROWS_PER_CLASS = 256  # of the most frequent rows, which place the centroids; FAISS takes as many
_CHUNK = 1 << 22  # distances that are held at once


class Clusters(NamedTuple):
    """The class of every row (n,), int64, and the centroids (classes, dim); every class has rows."""

    codes: torch.Tensor
    centroids: torch.Tensor


def k_means(
    vectors: torch.Tensor, classes: int, *, weights: torch.Tensor | None = None, seed: int = 0, steps: int = 25
) -> Clusters:
    """At most ``classes`` clusters of ``vectors`` (n, dim), with little weighted squared distance to their centroids.

    Fewer clusters are found where fewer rows differ. The 256 most frequent rows per class place the centroids in at
    most ``steps`` steps; then every row joins its nearest one. Rows of weight 0 only join.

    Args:
        vectors: float32 rows on the CPU
        classes: the number of clusters
        weights: how often each row counts (n,), such as the lookups of an id; None means once
        seed: decides the first centroids
        steps: the most steps
    """
    if classes < 1 or not len(vectors):
        raise ValueError(
            f"k-means must have a row and a class at least: got {len(vectors)} rows and {classes} classes; raise them"
        )
    generator = torch.Generator().manual_seed(seed)
    weights = torch.ones(len(vectors)) if weights is None or not bool((weights > 0).any()) else weights
    order = torch.randperm(len(vectors), generator=generator)  # so that rows of equal weight are chosen at random
    chosen = order[weights[order].argsort(descending=True, stable=True)][: _ROWS_PER_CLASS * classes]
    chosen = chosen[weights[chosen] > 0]
    mean = vectors[chosen].double().mean(0).float()  # near 0, differences of squares are exact
    own, own_weights = vectors[chosen] - mean, weights[chosen].double()
    centroids = _first_centroids(own, own_weights, classes, generator)
    codes, distances = _nearest(own, centroids)
    for _ in range(steps):
        centroids = _moved(own, own_weights, codes, distances, classes=len(centroids))
        before, (codes, distances) = codes, _nearest(own, centroids)
        if torch.equal(before, codes):
            break
    codes = _nearest(vectors - mean, centroids)[0]
    used, codes = codes.unique(return_inverse=True)
    return Clusters(codes, centroids[used] + mean)


def _first_centroids(
    vectors: torch.Tensor, weights: torch.Tensor, classes: int, generator: torch.Generator
) -> torch.Tensor:
    """Rows drawn one after another, each by its weight times its squared distance to the nearest one so far."""
    found = [_drawn(weights, generator)]
    distances = (vectors - vectors[found[0]]).double().square().sum(1)
    while len(found) < classes and bool((distances * weights > 0).any()):
        found.append(_drawn(distances * weights, generator))
        torch.minimum(distances, (vectors - vectors[found[-1]]).double().square().sum(1), out=distances)
    return vectors[found]


def _drawn(weights: torch.Tensor, generator: torch.Generator) -> int:
    sums = weights.cumsum(0)
    target = sums[-1] * torch.rand((), dtype=torch.float64, generator=generator)
    return int(torch.searchsorted(sums, target, right=True).clamp(max=len(sums) - 1))


def _nearest(vectors: torch.Tensor, centroids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The number of the nearest centroid of each row, and the squared distance to it."""
    squares = centroids.square().sum(1)
    codes = torch.empty(len(vectors), dtype=torch.int64)
    distances = torch.empty(len(vectors))
    step = max(1, _CHUNK // len(centroids))
    for first in range(0, len(vectors), step):
        rows = vectors[first : first + step]
        least, codes[first : first + step] = torch.addmm(squares, rows, centroids.T, alpha=-2).min(1)
        distances[first : first + step] = (least + rows.square().sum(1)).clamp(min=0)
    return codes, distances


def _moved(
    vectors: torch.Tensor, weights: torch.Tensor, codes: torch.Tensor, distances: torch.Tensor, *, classes: int
) -> torch.Tensor:
    """The mean of each cluster; an empty one moves to the row that is worst represented."""
    sums = torch.zeros(classes, vectors.size(1), dtype=torch.float64).index_add_(0, codes, vectors * weights[:, None])
    counts = torch.zeros(classes, dtype=torch.float64).index_add_(0, codes, weights)
    moved = (sums / counts.clamp(min=torch.finfo(torch.float64).tiny)[:, None]).float()
    empty = (counts == 0).nonzero()[:, 0]
    if len(empty):
        moved[empty] = vectors[(distances * weights).topk(len(empty)).indices]
    return moved
