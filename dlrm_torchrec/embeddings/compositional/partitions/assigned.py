"""A partition by the user's own assignment of ids to classes, for example from clustering."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch

from dlrm_torchrec.embeddings.compositional.partitions.base import Complementary

_CPU = torch.device("cpu")


class Assigned(Complementary):
    """Classes that the user assigns: k integer tensors that hold the class of every id.

    The number of classes of a partition is its largest class plus one. Raises ValueError when two ids have the same
    k classes.
    """

    def __init__(self, assignments: Sequence[torch.Tensor]) -> None:
        if not assignments:
            raise ValueError("assignments must hold at least one tensor: got none; give the class of every id")
        # copies, so that a caller cannot change the assignments after they were checked
        own = tuple(_checked(f"assignment {index}", given).clone() for index, given in enumerate(assignments))
        lengths = [len(assignment) for assignment in own]
        if len(set(lengths)) > 1:
            raise ValueError(
                f"assignments must all have the same length, the number of ids: got lengths {lengths}; "
                "give every id a class in each"
            )
        ranks, order = _tuple_ranks(own).sort(stable=True)
        alike = (ranks[1:] == ranks[:-1]).nonzero()
        if len(alike):
            first = int(alike[0])
            raise ValueError(
                f"assignments must tell any two ids apart: got the same classes for ids {int(order[first])} and "
                f"{int(order[first + 1])}; add a partition that separates them, as Assigned.from_clusters does"
            )
        self.num_ids = lengths[0]
        self._copies = {_CPU: own}

    @classmethod
    def from_clusters(cls, clusters: torch.Tensor) -> Assigned:
        """Two partitions: the cluster of an id, and its rank within the cluster; complementary for any clustering."""
        clusters = _checked("clusters", clusters)
        by_cluster, order = clusters.sort(stable=True)
        sizes = clusters.bincount()
        starts = sizes.cumsum(0) - sizes
        ranks = torch.empty_like(order)
        ranks[order] = torch.arange(len(order)) - starts[by_cluster]
        return cls((clusters, ranks))

    @cached_property
    def classes(self) -> tuple[int, ...]:
        return tuple(int(assignment.max()) + 1 for assignment in self._copies[_CPU])

    @property
    def assignments(self) -> tuple[torch.Tensor, ...]:
        """The class of every id in each partition, on the CPU."""
        return self._copies[_CPU]

    def of(self, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ids = ids.long()
        return tuple(assignment[ids] for assignment in self._on(ids.device))

    def ids_of(self, *classes: torch.Tensor) -> torch.Tensor:
        """The ids that have these k classes, or -1 where no id has; every call sorts all ``num_ids`` tuples."""
        device, shape = classes[0].device, classes[0].shape
        pairs = zip(self._on(device), classes, strict=True)
        ranks = _tuple_ranks([torch.cat((own, given.flatten())) for own, given in pairs])
        ids = torch.full_like(ranks, -1)
        ids[ranks[: self.num_ids]] = torch.arange(self.num_ids, device=device)
        return ids[ranks[self.num_ids :]].reshape(shape)

    def _on(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        """The assignments on ``device``; they are copied there once."""
        if device not in self._copies:
            self._copies[device] = tuple(assignment.to(device) for assignment in self._copies[_CPU])
        return self._copies[device]


def _checked(name: str, classes: torch.Tensor) -> torch.Tensor:
    """``classes`` as int64 on the CPU; raises ValueError unless they hold one class per id, and none is negative."""
    dtype, shape = classes.dtype, tuple(classes.shape)
    integer = not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)
    if not integer or len(shape) != 1 or shape[0] == 0:
        raise ValueError(
            f"{name} must be a 1-D integer tensor with one class per id: got {dtype} of shape {shape}; "
            "give class numbers from 0"
        )
    classes = classes.detach().to(_CPU, torch.int64)
    if int(classes.min()) < 0:
        raise ValueError(f"{name} must have no negative class: got {int(classes.min())}; number classes from 0")
    return classes


def _tuple_ranks(columns: Sequence[torch.Tensor]) -> torch.Tensor:
    """A number below n for each of n tuples; only equal tuples get the same. Each of ``columns`` holds n values."""
    ranks = torch.zeros_like(columns[0], dtype=torch.int64)
    for column in columns:
        values, dense = torch.unique(column, return_inverse=True)
        pairs = ranks * len(values) + dense  # below n * n, so it never leaves int64
        ranks = torch.unique(pairs, return_inverse=True)[1]
    return ranks
