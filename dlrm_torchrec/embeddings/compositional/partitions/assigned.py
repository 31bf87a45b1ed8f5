"""A partition by the user's own assignment of ids to classes, for example from clustering."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch

from dlrm_torchrec.embeddings.compositional.partitions.base import Partition

_CPU = torch.device("cpu")
_LARGEST = {dtype: torch.iinfo(dtype).max for dtype in (torch.int16, torch.int32)}  # class that each can hold


class Assigned(Partition):
    """Classes that the user assigns: k integer tensors that hold the class of every id, kept as int16 where they fit.

    The number of classes of a partition is its largest class plus one. Raises ValueError when two ids have the same
    k classes, unless the assignment need not be ``complementary``.
    """

    def __init__(self, assignments: Sequence[torch.Tensor], *, complementary: bool = True) -> None:
        if not len(assignments):
            raise ValueError("assignments must hold at least one tensor: got none; give the class of every id")
        checked = [_checked(f"assignment {index}", given) for index, given in enumerate(assignments)]
        lengths = [len(assignment) for assignment in checked]
        if len(set(lengths)) > 1:
            raise ValueError(
                f"assignments must all have the same length, the number of ids: got lengths {lengths}; "
                "give every id a class in each"
            )
        self.num_ids = lengths[0]
        self._classes = tuple(int(assignment.max()) + 1 for assignment in checked)
        # copies, so that a caller cannot change the assignments after they were checked; kernels read them as one array
        self._codes = tuple(torch.stack(checked)) if len({each.dtype for each in checked}) == 1 else tuple(checked)
        self._copies = {_CPU: self._codes}
        if complementary:
            ranks, order = _tuple_ranks(self._codes).sort(stable=True)
            alike = (ranks[1:] == ranks[:-1]).nonzero()
            if len(alike):
                first = int(alike[0])
                raise ValueError(
                    f"assignments must tell any two ids apart: got the same classes for ids {int(order[first])} and "
                    f"{int(order[first + 1])}; add a partition that separates them, as Assigned.from_clusters does, or "
                    "let ids share their vectors with complementary=False"
                )

    @classmethod
    def from_clusters(cls, clusters: torch.Tensor) -> Assigned:
        """Two partitions: the cluster of an id, and its rank within the cluster; complementary for any clustering."""
        clusters = _checked("clusters", clusters).long()
        by_cluster, order = clusters.sort(stable=True)
        sizes = clusters.bincount()
        starts = sizes.cumsum(0) - sizes
        ranks = torch.empty_like(order)
        ranks[order] = torch.arange(len(order)) - starts[by_cluster]
        return cls((clusters, ranks))

    @property
    def classes(self) -> tuple[int, ...]:
        return self._classes

    @property
    def codes(self) -> tuple[torch.Tensor, ...]:
        return self._codes

    @cached_property
    def shared_ids(self) -> float:
        """The share of ids of which another id has all classes; 0 for complementary partitions."""
        counts = _tuple_ranks(self._codes).unique(return_counts=True)[1]
        return float(counts[counts > 1].sum()) / self.num_ids

    def of(self, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ids = ids.long()
        return tuple(codes[ids].long() for codes in self._on(ids.device))

    def ids_of(self, *classes: torch.Tensor) -> torch.Tensor:
        """The largest id that has these k classes, or -1 if no id has; every call sorts all ``num_ids`` tuples."""
        device, shape = classes[0].device, classes[0].shape
        pairs = zip(self._on(device), classes, strict=True)
        ranks = _tuple_ranks([torch.cat((own.long(), given.long().flatten())) for own, given in pairs])
        ids = torch.full_like(ranks, -1)
        own = torch.arange(self.num_ids, device=device)
        ids.scatter_reduce_(0, ranks[: self.num_ids], own, "amax")
        return ids[ranks[self.num_ids :]].reshape(shape)

    def _on(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        """The codes on ``device``; they are copied there once."""
        if device not in self._copies:
            self._copies[device] = tuple(codes.to(device) for codes in self._codes)
        return self._copies[device]


def _checked(name: str, classes: torch.Tensor) -> torch.Tensor:
    """A copy of ``classes`` in few bytes on the CPU; ValueError unless they hold one class per id, none negative."""
    dtype, shape = classes.dtype, tuple(classes.shape)
    integer = not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)
    if not integer or len(shape) != 1 or shape[0] == 0:
        raise ValueError(
            f"{name} must be a 1-D integer tensor with one class per id: got {dtype} of shape {shape}; "
            "give class numbers from 0"
        )
    least, most = (int(each) for each in classes.aminmax())
    if least < 0:
        raise ValueError(f"{name} must have no negative class: got {least}; number classes from 0")
    if most > _LARGEST[torch.int32]:
        raise ValueError(f"{name} must have classes below 2^31: got {most}; number classes from 0 without gaps")
    fitting = next(dtype for dtype, largest in _LARGEST.items() if most <= largest)
    return classes.detach().to(_CPU, fitting, copy=True)


def _tuple_ranks(columns: Sequence[torch.Tensor]) -> torch.Tensor:
    """A number below n for each of n tuples; only equal tuples get the same. Each of ``columns`` holds n values."""
    ranks = torch.zeros_like(columns[0], dtype=torch.int64)
    for column in columns:
        values, dense = torch.unique(column, return_inverse=True)
        pairs = ranks * len(values) + dense  # below n * n, so it never leaves int64
        ranks = torch.unique(pairs, return_inverse=True)[1]
    return ranks
