"""What compositional tables are defined to be, in plain loops over float64 rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod

import torch

from dlrm_torchrec.embeddings.compositional.operations import Add, Concat, FeatureGeneration, Mult, Operation, Path
from dlrm_torchrec.embeddings.compositional.partitions.arithmetic import (
    ChineseRemainder,
    Hash,
    MixedRadix,
    Naive,
    QuotientRemainder,
)
from dlrm_torchrec.embeddings.compositional.partitions.base import Partition
from dlrm_torchrec.embeddings.compositional.partitions.hashes import Hashes
from dlrm_torchrec.embeddings.compositional.partitions.hot_cold import HotCold
from dlrm_torchrec.embeddings.compositional.partitions.renumbered import Renumbered
from dlrm_torchrec.embeddings.compositional.partitions.together import Together
from dlrm_torchrec.embeddings.compositional.tensor_train import TensorTrain


def classes_of(partition: Partition, x: int) -> tuple[int, ...]:
    """The definitions of the paper in Python integers; a user's own assignment is its own definition."""
    match partition:
        case Naive():
            return (x,)
        case Hash(_, m, seed):
            return ((mixed(x, seed) if seed else x) % m,)
        case QuotientRemainder(_, m):
            return x // m, x % m
        case MixedRadix(_, radices):
            return tuple(x // prod(radices[:j]) % radix for j, radix in enumerate(radices))
        case ChineseRemainder(_, moduli):
            return tuple(x % m for m in moduli)
        case HotCold(hot, tail, own_in_all):
            own = [own_in_all or j == 0 for j in range(len(tail.classes))]
            if x < hot:
                return tuple(x if mine else 0 for mine in own)
            of_tail = zip(classes_of(tail, x - hot), own, reversed(range(len(own))), strict=True)
            return tuple(
                (hot if mine else 1) + (hot * later if tail.shared_from else 0) + number
                for number, mine, later in of_tail
            )
        case Together(parts):
            return tuple(number for part in parts for number in classes_of(part, x))
        case Renumbered():
            first = partition.first_ids.tolist()
            return classes_of(partition.inner, first.index(x) if x in first else len(first) + x)
        case Hashes(_, m, k):
            return tuple(mixed(x, seed) % m for seed in range(1, k + 1))
    return tuple(int(classes) for classes in partition.of(torch.tensor(x)))


def mixed(x: int, seed: int) -> int:
    """The upper 51 bits of SplitMix64, in integers without an end."""
    bits = (x + seed * 0x9E3779B97F4A7C15) % 2**64
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB % 2**64
    return (bits ^ bits >> 31) >> 13


def network_rows(operation: Operation, dim: int, j: int, k: int) -> int:
    """Rows that one class of partition ``j`` has, of k."""
    if j and isinstance(operation, Path):
        return 2 * operation.hidden + -(-operation.hidden // dim) + 1 if operation.hidden else dim
    return -(-prod(core_shape(operation, dim, j, k)) // dim) if isinstance(operation, TensorTrain) else 1


def core_shape(operation: TensorTrain, dim: int, j: int, k: int) -> tuple[int, int, int]:
    """The rank before core ``j`` of k, its factor of the dim, and the rank behind it."""
    sizes = [each for each in product(range(1, dim + 1), repeat=k - 1) if dim % prod(each) == 0]
    factors = min((sorted([*each, dim // prod(each)]) for each in sizes), key=sum)
    ranks = [1, dim // factors[0], *[operation.rank] * (k - 2), 1]
    return ranks[j], factors[j], ranks[j + 1] if j < k - 1 else 1


def vector(operation: Operation, partition: Partition, weight: torch.Tensor, x: int) -> torch.Tensor:
    """The vector of id ``x``, from the physical ``weight`` in which the partitions are stacked."""
    dim, first, rows = weight.size(1), 0, []
    for j, (number, count) in enumerate(zip(classes_of(partition, x), partition.classes, strict=True)):
        size = network_rows(operation, dim, j, len(partition.classes))
        first = partition.shared_from[j] if partition.shared_from else first
        rows.append(weight[first + number * size : first + (number + 1) * size])
        first += count * size
    assert first == len(weight)
    result = rows[0][0]
    match operation:
        case Add():
            for row in rows[1:]:
                result = result + row[0]
        case Mult():
            for row in rows[1:]:
                result = result * row[0]
        case Concat() | FeatureGeneration():
            result = torch.cat([row[0] for row in rows])
        case Path(hidden):
            for network in rows[1:]:
                result = path(network, hidden, result)
        case TensorTrain():
            result = torch.ones(1, 1, dtype=weight.dtype)  # the numbers so far, by the rank behind them
            for j, core in enumerate(rows):
                shape = core_shape(operation, dim, j, len(rows))
                numbers = core.flatten()[: prod(shape)].view(shape)
                result = torch.einsum("pr,rds->pds", result, numbers).flatten(0, 1)
            result = result.squeeze(1)
    return result


def path(network: torch.Tensor, hidden: int, x: torch.Tensor) -> torch.Tensor:
    """M(x) of the rows of one network."""
    if not hidden:
        return network.T @ x
    bias_rows = -(-hidden // len(x))
    w1, b1 = network[:hidden], network[hidden : hidden + bias_rows].flatten()[:hidden]
    w2, b2 = network[hidden + bias_rows : -1].T, network[-1]
    return w2 @ (w1 @ x + b1).clamp(min=0) + b2


def pooled(
    operation: Operation,
    partition: Partition,
    weight: torch.Tensor,
    bags: Sequence[Sequence[int]],
    weights: torch.Tensor | None = None,
    mean: bool = False,
) -> torch.Tensor:
    """Sums or means over bags of ids; ``weights`` (all ids,) are those of the ids in their order."""
    position, width = 0, len(vector(operation, partition, weight, 0))
    rows = []
    for bag in bags:
        total = weight.new_zeros(width)
        for x in bag:
            found = vector(operation, partition, weight, x)
            total = total + (found if weights is None else weights[position] * found)
            position += 1
        rows.append(total / len(bag) if mean and bag else total)
    return torch.stack(rows) if rows else weight.new_zeros(0, width)
