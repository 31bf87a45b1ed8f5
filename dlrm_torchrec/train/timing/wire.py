"""Counts the bytes that ranks send, from the collectives that run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup
from torch.utils._python_dispatch import TorchDispatchMode


class Wire(TorchDispatchMode):
    """Counts what this rank sends inside ``with``: ``sent`` lists the bytes of each collective to other ranks.

    Every call of torch.distributed ends in an operator of c10d, and these operators are counted. An all-reduce counts
    as a reduce-scatter and an all-gather. ``pieces`` lists, for each all-to-all, the bytes for every rank of the group
    including this one. Raises ValueError for a collective that it cannot count.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in torch
        self.sent: list[int] = []
        self.pieces: list[list[int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        namespace, _, name = func.name().partition("::")
        if "c10d" in namespace:
            if name == "alltoall_base_":
                self.pieces.append(_pieces(args))
            self.sent.append(_sent(name, args))
        return func(*args, **(kwargs or {}))


def _pieces(args: tuple[Any, ...]) -> list[int]:
    tensor, size, splits = args[1], ProcessGroup.unbox(args[2]).size(), args[4]
    if not splits:
        return [_num_bytes(tensor) // size] * size
    return [split * _num_bytes(tensor[:1]) for split in splits]


def _sent(name: str, args: tuple[Any, ...]) -> int:
    if name == "allreduce_":
        tensors, group = args[0], ProcessGroup.unbox(args[1])
        return 2 * sum(map(_num_bytes, tensors)) * (group.size() - 1) // group.size()
    if name == "broadcast_":
        tensors, group, root = args[0], ProcessGroup.unbox(args[1]), args[2]
        return sum(map(_num_bytes, tensors)) * (group.size() - 1) if group.rank() == root else 0
    if name == "barrier":
        return 0
    if name == "allgather_":
        return sum(map(_num_bytes, args[1])) * (ProcessGroup.unbox(args[2]).size() - 1)
    if name not in ("alltoall_base_", "_reduce_scatter_base_", "_allgather_base_"):
        raise ValueError(f"collectives must have a kind that Wire can count: got {name}; add it to Wire")
    tensor, group = args[1], ProcessGroup.unbox(args[2])
    if name == "alltoall_base_":
        pieces = _pieces(args)
        return sum(pieces) - pieces[group.rank()]
    if name == "_allgather_base_":
        return _num_bytes(tensor) * (group.size() - 1)
    return _num_bytes(tensor) * (group.size() - 1) // group.size()


def _num_bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


class WireCounts:
    """Counts the bytes that a rank sends per step, in the repeated parts of a loop.

    Counting takes some milliseconds, so only the first three times are counted and the third is used: the first step
    fills the pipeline, and DDP regroups its gradients after it.
    """

    def __init__(self) -> None:
        self._counted: dict[tuple[str, int], list[int]] = {}

    @contextmanager
    def count(self, name: str, every: int = 1) -> Iterator[None]:
        """Count the bytes that are sent inside ``with``, which runs every ``every`` steps."""
        counted = self._counted.setdefault((name, every), [])
        if len(counted) == 3:
            yield
            return
        with Wire() as wire:
            yield
        counted.append(sum(wire.sent))

    def per_step(self, group: ProcessGroup) -> float:
        """Bytes per rank and step, averaged over the ranks of ``group``."""
        sent = sum(counted[-1] / every for (_, every), counted in self._counted.items())
        total = torch.tensor(sent, dtype=torch.float64)
        dist.all_reduce(total, group=group)
        return float(total) / group.size()
