"""Paths of two partitions on CPU: one class's vectors at a time go through its network while they are in the cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dlrm_torchrec.embeddings.compositional.bags import Bags, LookUp, one_each
from dlrm_torchrec.embeddings.compositional.paths.kernels import add_to_vectors, distinct_ids, order_by_class, sum_bags
from dlrm_torchrec.embeddings.compositional.table_group import TableGroup

# Multiply-adds for which numpy's OpenBLAS does not yet start threads. Lookups have a thread each already.
_BLOCK = 2**18

Numbers = NDArray[np.floating[Any]]


class Plan(NamedTuple):
    """What a batch's path reads and sums."""

    places: NDArray[np.int64]  # of each id's vector
    lengths: NDArray[np.int64]  # of the bags, of one feature after another
    weights: Numbers  # of ids; empty if all are 1
    runs: NDArray[np.int64]  # feature, class, first vector, the one after the last
    num_features: int
    num_vectors: int
    network_rows: list[int]  # rows of W1, b1, W2 and b2, or of one matrix


def pool_paths(
    group: TableGroup, bags: Bags, look_up: LookUp, network_rows: Callable[[int], list[int]]
) -> torch.Tensor:
    """The sums of the vectors of each bag's ids (bags, dim), whose weights have no gradient.

    ``network_rows`` gives the numbers of rows of a network's parts for a dim.
    """
    counts = bags.lengths.view(group.num_features, -1).sum(1)
    found, counts_found, places = distinct_ids(bags.values.long().contiguous().numpy(), counts.numpy())
    ids = Bags(torch.from_numpy(found), torch.from_numpy(counts_found), None)
    first, classes = group.networks(ids).values.view(2, len(found))
    num_classes = sum(group.class_counts[1])
    order, places, runs = order_by_class(classes.numpy(), counts_found, num_classes, places)
    rows = one_each(first[torch.from_numpy(order)])
    read = group.read(look_up, rows, group.later_rows(first.device))
    read = read.to(torch.promote_types(read.dtype, torch.float32))
    weights = read.new_empty(0) if bags.weights is None else bags.weights.to(read.dtype)
    plan = Plan(
        places,
        bags.lengths.long().contiguous().numpy(),
        weights.contiguous().numpy(),
        runs,
        group.num_features,
        len(found),
        network_rows(read.size(1)),
    )
    pooled: torch.Tensor = _Paths.apply(read, plan)  # type: ignore[no-untyped-call]  # untyped in torch
    return pooled


class _Paths(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, read: torch.Tensor, plan: Plan) -> torch.Tensor:
        ctx.plan = plan
        ctx.save_for_backward(read)
        numbers = read.detach().contiguous().numpy()
        sums = read.new_empty(len(plan.lengths), read.size(1))
        for part in _features(plan):
            vectors = np.empty((part.last - part.first, read.size(1)), numbers.dtype)
            for _, number, first, last in part.runs:
                network = _network(plan, numbers, number)
                _forward(numbers[first:last], network, vectors[first - part.first : last - part.first])
            sum_bags(vectors, part.places, part.lengths, part.weights, sums.numpy()[part.bags])
        return sums

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        plan, (read,) = ctx.plan, ctx.saved_tensors
        numbers, towards = read.detach().contiguous().numpy(), gradients[0].contiguous().numpy()
        gradient = torch.empty_like(read, memory_format=torch.contiguous_format)
        moved = gradient.numpy()
        moved[plan.num_vectors :] = 0
        for part in _features(plan):
            vectors = np.zeros((part.last - part.first, read.size(1)), numbers.dtype)
            add_to_vectors(towards[part.bags], part.places, part.lengths, part.weights, vectors)
            for _, number, first, last in part.runs:
                own = vectors[first - part.first : last - part.first]
                network, of_network = _network(plan, numbers, number), _network(plan, moved, number)
                _backward(numbers[first:last], network, own, of_network, moved[first:last])
        return gradient, None


class _Feature(NamedTuple):
    """The part of a plan that belongs to one feature; places count from its ``first`` vector."""

    first: int
    last: int
    runs: NDArray[np.int64]
    bags: slice
    lengths: NDArray[np.int64]
    places: NDArray[np.int64]
    weights: Numbers


def _features(plan: Plan) -> list[_Feature]:
    """The features that have ids."""
    num_bags = len(plan.lengths) // plan.num_features
    ids = np.concatenate([[0], plan.lengths.cumsum()])
    borders = np.searchsorted(plan.runs[:, 0], np.arange(plan.num_features + 1))
    parts = []
    for feature in range(plan.num_features):
        runs = plan.runs[borders[feature] : borders[feature + 1]]
        bags = slice(feature * num_bags, (feature + 1) * num_bags)
        first, last = (int(runs[0, 2]), int(runs[-1, 3])) if len(runs) else (0, 0)
        own = slice(ids[bags.start], ids[bags.stop])
        weights = plan.weights[own] if len(plan.weights) else plan.weights
        parts.append(_Feature(first, last, runs, bags, plan.lengths[bags], plan.places[own] - first, weights))
    return parts


def _network(plan: Plan, numbers: Numbers, number: int) -> list[Numbers]:
    """Views of the rows of a class's network: W1, b1, W2 and b2, or one matrix; see ``Path``."""
    size = sum(plan.network_rows)
    start = plan.num_vectors + number * size
    borders = np.cumsum(plan.network_rows)[:-1]
    return np.split(numbers[start : start + size], borders)


def _hidden(vectors: Numbers, w1: Numbers, b1: Numbers) -> Numbers:
    """The hidden units (n, hidden) of vectors (n, dim)."""
    hidden = np.empty((len(vectors), len(w1)), vectors.dtype)
    _multiply(vectors, w1.T, hidden)
    hidden += b1.reshape(-1)[: len(w1)]
    return np.maximum(hidden, 0, out=hidden)


def _forward(vectors: Numbers, network: list[Numbers], output: Numbers) -> None:
    """Write what the network makes of the vectors (n, dim)."""
    if len(network) == 1:
        _multiply(vectors, network[0], output)
        return
    w1, b1, w2, b2 = network
    _multiply(_hidden(vectors, w1, b1), w2, output)
    output += b2


def _backward(  # noqa: PLR0917  # each is an array of its own
    vectors: Numbers, network: list[Numbers], towards: Numbers, gradients: list[Numbers], output: Numbers
) -> None:
    """Write the gradient of the vectors, from the one of the output; add those of the network to ``gradients``."""
    if len(network) == 1:
        gradients[0] += _inner(vectors, towards)
        _multiply(towards, network[0].T, output)
        return
    w1, b1, w2, _ = network
    hidden, ones = _hidden(vectors, w1, b1), np.ones(len(vectors), vectors.dtype)
    gradients[2] += _inner(hidden, towards)
    gradients[3] += ones @ towards
    to_hidden = np.empty_like(hidden)
    _multiply(towards, w2.T, to_hidden)
    to_hidden *= hidden > 0
    gradients[0] += _inner(to_hidden, vectors)
    gradients[1].reshape(-1)[: len(w1)] += ones @ to_hidden
    _multiply(to_hidden, w1, output)


def _multiply(rows: Numbers, matrix: Numbers, output: Numbers) -> None:
    """Write ``rows`` (n, i) @ ``matrix`` (i, j), in blocks so small that one thread computes each."""
    block = max(_BLOCK // matrix.size, 1)
    whole = len(rows) // block * block
    blocks = (-1, block)
    np.matmul(
        rows[:whole].reshape(*blocks, rows.shape[1]), matrix, out=output[:whole].reshape(*blocks, output.shape[1])
    )
    np.matmul(rows[whole:], matrix, out=output[whole:])


def _inner(one: Numbers, other: Numbers) -> Numbers:
    """``one`` (n, i) transposed @ ``other`` (n, j), likewise."""
    block = max(_BLOCK // (one.shape[1] * other.shape[1]), 1)
    whole = len(one) // block * block
    blocks = one[:whole].reshape(-1, block, one.shape[1]).transpose(0, 2, 1)
    products = blocks @ other[:whole].reshape(-1, block, other.shape[1])
    return np.asarray(products.sum(0) + one[whole:].T @ other[whole:])
