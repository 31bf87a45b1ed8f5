"""A table of clusters in place of a trained one: its codes, the rows that it begins with, and their moments.

Clustered compositional embeddings (CCE, Tsang and Ahle, arXiv 2210.05974) repeat this between epochs. A hash beside the
clusters, whose rows begin at 0, lets ids of one cluster drift apart; the next clustering then puts them elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dlrm_torchrec.embeddings.assignments import Assignment
from dlrm_torchrec.embeddings.clustering.levels import class_means, collisions, residual_k_means
from dlrm_torchrec.embeddings.compositional.partitions.assigned import Assigned


@dataclass(frozen=True, kw_only=True)
class Clustering:
    """How tables are clustered."""

    levels: int = 1
    classes: int = 256  # of each level at most
    hash_classes: int = 0  # of a hash beside them; 0 means none
    hash_seed: int = 1
    seed: int = 0  # of k-means


@dataclass(frozen=True)
class ClusteredTable:
    """An assignment with what its file holds besides."""

    assignment: Assignment
    weight: torch.Tensor  # the rows of all classes, stacked
    moments: dict[str, torch.Tensor]  # of these rows
    report: dict[str, Any]

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors of the table's file."""
        return {**self.assignment.tensors(), "weight": self.weight, **self.moments}


def cluster_table(
    vectors: torch.Tensor,
    how: Clustering,
    *,
    moments: Mapping[str, torch.Tensor],
    weights: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> ClusteredTable:
    """The clusters of the ``vectors`` (ids, dim) of a table, whose sums approximate them, weighted by lookups.

    The moments of a cluster are the mean of those of its ids, weighted by lookups, too. The rows of the hash are new.

    Args:
        vectors: the vectors of all ids, float32
        how: the number of levels and classes
        moments: those of all ids by name, (ids,) or (ids, dim)
        weights: the lookups of each id; None means that all are equally frequent
        dtype: the type of the rows
    """
    lookups = torch.ones(len(vectors)) if weights is None else weights.float()
    found = residual_k_means(vectors, [how.classes] * how.levels, weights=lookups, seed=how.seed)
    assignment = Assignment(
        assigned=Assigned(found.codes, complementary=False),
        made=f"k-means of trained vectors, {how.levels} levels",
        hash_classes=how.hash_classes,
        hash_seed=how.hash_seed,
    )
    of_classes = {
        name: torch.cat([*(class_means(each, codes, lookups) for codes in found.codes), _new(each, how.hash_classes)])
        for name, each in moments.items()
    }
    report = {
        **collisions(assignment.partition, assignment.assigned),
        "explained": [round(share, 4) for share in found.explained],
    }
    return ClusteredTable(
        assignment, torch.cat([*found.centroids, _new(vectors, how.hash_classes)]).to(dtype), of_classes, report
    )


def _new(like: torch.Tensor, rows: int) -> torch.Tensor:
    """Rows that are not trained yet."""
    return like.new_zeros(rows, *like.shape[1:])
