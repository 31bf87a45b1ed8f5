"""Bytes on the wire, counted from the collectives that run."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.distributed import ProcessGroup
from torch.utils._python_dispatch import TorchDispatchMode
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


class Wire(TorchDispatchMode):
    """What this rank sends to other ranks inside ``with``: ``sent`` has the bytes of each collective, in order.

    Every call of torch.distributed ends in an operator of c10d, whoever makes it, and those are counted. An
    all-reduce is a reduce-scatter and an all-gather. Raises ValueError for a collective that it cannot count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if "c10d" in func.namespace:
            self.sent.append(_sent(func._opname, args))
        return func(*args, **(kwargs or {}))


def _sent(name: str, args: tuple[Any, ...]) -> int:
    if name == "allreduce_":
        tensors, group = args[0], ProcessGroup.unbox(args[1])
        return 2 * sum(map(_num_bytes, tensors)) * (group.size() - 1) // group.size()
    if name not in ("alltoall_base_", "_reduce_scatter_base_", "_allgather_base_"):
        raise ValueError(f"collectives must be of a kind that is counted: got {name}; add it")
    tensor, group = args[1], ProcessGroup.unbox(args[2])
    if name == "_allgather_base_":
        return _num_bytes(tensor) * (group.size() - 1)
    splits = args[4] if name == "alltoall_base_" else []
    kept = splits[group.rank()] * _num_bytes(tensor[:1]) if splits else _num_bytes(tensor) // group.size()
    return _num_bytes(tensor) - kept


def _num_bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


class Traffic(NamedTuple):
    """Bytes of each collective of one step."""

    ids: list[int]
    vectors: list[int]
    gradients: list[int]


def traffic(sharded: ShardedEmbeddingBagCollection, features: KeyedJaggedTensor) -> Traffic:
    """What this rank sends in one forward and backward pass."""
    context = sharded.create_context()
    with Wire() as ids:
        arrived = sharded.input_dist(context, features).wait().wait()
    with Wire() as vectors:
        pooled = sharded.compute_and_output_dist(context, arrived).wait()
    with Wire() as gradients:
        pooled.values().sum().backward()
    return Traffic(ids.sent, vectors.sent, gradients.sent)
