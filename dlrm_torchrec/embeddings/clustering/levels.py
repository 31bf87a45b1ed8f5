"""Residual k-means: each level clusters what the levels before leave, so that an id is the sum of its centroids.

With several levels, the classes of an id are its semantic id: "Recommender Systems with Generative Retrieval"
(arXiv 2305.05065), section 3.1, without the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dlrm_torchrec.embeddings.clustering.kmeans import k_means
from dlrm_torchrec.embeddings.compositional.partitions.assigned import Assigned
from dlrm_torchrec.embeddings.compositional.partitions.base import Partition


@dataclass(frozen=True)
class Levels:
    """The classes of every id on each level, and the centroids (classes, dim) of each."""

    codes: list[torch.Tensor]
    centroids: list[torch.Tensor]
    explained: list[float]  # shares of the vectors' weighted variance, level by level


def residual_k_means(
    vectors: torch.Tensor, classes: Sequence[int], *, weights: torch.Tensor | None = None, seed: int = 0
) -> Levels:
    """As many levels as ``classes`` has numbers, each with at most so many clusters; see ``k_means``."""
    if weights is None or not bool((weights > 0).any()):
        weights = torch.ones(len(vectors))
    rest, found = vectors.float(), Levels([], [], [])
    mean = (rest.double() * weights[:, None]).sum(0) / weights.double().sum()
    total = left = _variance(rest - mean.float(), weights)
    for level, count in enumerate(classes):
        clusters = k_means(rest, count, weights=weights, seed=seed + level)
        rest = rest - clusters.centroids[clusters.codes]
        after = _variance(rest, weights)
        found.codes.append(clusters.codes)
        found.centroids.append(clusters.centroids)
        found.explained.append((left - after) / total if total else 1.0)
        left = after
    return found


def collisions(partition: Partition, assigned: Assigned) -> dict[str, object]:
    """The report on an assignment: the classes of each level, their ids, and the share of ids without an own vector.

    These are the ids of which another one has all classes, those of ``partition``, which may have a hash besides.
    """
    every = Assigned(partition.of(torch.arange(assigned.num_ids)), complementary=False)
    counts = [torch.bincount(codes.long()) for codes in assigned.codes]
    return {
        "ids": assigned.num_ids,
        "classes": list(assigned.classes),
        "ids_per_class": [round(assigned.num_ids / len(each), 2) for each in counts],
        "most_ids_of_a_class": [int(each.max()) for each in counts],
        "shared_ids": round(every.shared_ids, 4),
    }


def class_means(values: torch.Tensor, codes: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The weighted mean of ``values`` (n, ...) in each class, or the plain mean where all weights of a class are 0."""
    classes = int(codes.max()) + 1
    of_class = torch.zeros(classes, dtype=torch.float64).index_add_(0, codes, weights.double())
    weights = torch.where(of_class[codes] > 0, weights.double(), 1.0)
    of_class = torch.zeros(classes, dtype=torch.float64).index_add_(0, codes, weights)
    shape = (-1, *[1] * (values.ndim - 1))
    sums = torch.zeros(classes, *values.shape[1:], dtype=torch.float64)
    sums.index_add_(0, codes, values.double() * weights.view(shape))
    return (sums / of_class.clamp(min=torch.finfo(torch.float64).tiny).view(shape)).to(values.dtype)


def _variance(vectors: torch.Tensor, weights: torch.Tensor) -> float:
    return float((vectors.double().square().sum(1) * weights).sum() / weights.double().sum())
