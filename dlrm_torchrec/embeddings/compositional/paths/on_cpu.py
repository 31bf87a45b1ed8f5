"""Paths of two partitions on CPU: one class's vectors at a time go through its network while they are in the cache.

The last layer is linear. So where that costs less, hidden vectors h of a bag's ids are summed for each class, and only
the sums go through the last layer: sum_x (h(x) @ W + b) = (sum_x h(x)) @ W + n b.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from dlrm_torchrec.embeddings.compositional.bags import Bags, LookUp, one_each
from dlrm_torchrec.embeddings.compositional.paths.kernels import add_to_vectors, distinct_ids, order_by_class, sum_bags
from dlrm_torchrec.embeddings.compositional.table_group import TableGroup
from dlrm_torchrec.embeddings.compositional.thread_pool import thread_pool

Part = TypeVar("Part")
Result = TypeVar("Result")

# Multiply-adds for which numpy's OpenBLAS does not yet start threads. Lookups have a thread each already.
_BLOCK = 2**18
# A number that is added to a sum takes as long as so many multiply-adds of a matrix product.
_PRODUCTS_PER_SUM = 4

Numbers = NDArray[np.floating[Any]]


class Plan(NamedTuple):
    """What a batch's path reads and sums."""

    places: NDArray[np.int64]  # of each id's vector
    lengths: NDArray[np.int64]  # of the bags, of one feature after another
    bag_counts: list[int]  # of each feature
    weights: Numbers  # of ids; empty if all are 1
    runs: NDArray[np.int64]  # feature, class, first vector, the one after the last
    num_vectors: int
    network_rows: list[int]  # rows of W1, b1, W2 and b2, or of one matrix


def pool_paths(
    group: TableGroup,
    bags: Bags,
    look_up: LookUp,
    network_rows: Callable[[int], list[int]],
    *,
    single: bool = False,
) -> torch.Tensor:
    """The sums of the vectors of each bag's ids (bags, dim), whose weights have no gradient.

    ``network_rows`` gives the numbers of rows of a network's parts for a dim. With ``single``, every id is a bag.
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
    lengths = torch.ones_like(bags.values, dtype=torch.int64) if single else bags.lengths.long().contiguous()
    plan = Plan(
        places,
        lengths.numpy(),
        counts.tolist() if single else [len(lengths) // group.num_features] * group.num_features,
        weights.contiguous().numpy(),
        runs,
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
        parts = _features(plan, read.size(1))
        ctx.kept = _on_all_threads(lambda part: _forward(part, numbers, sums.numpy()[part.bags]), parts)
        return sums

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        plan, (read,) = ctx.plan, ctx.saved_tensors
        numbers, towards = read.detach().contiguous().numpy(), gradients[0].contiguous().numpy()
        gradient = torch.from_numpy(np.empty(numbers.shape, numbers.dtype))  # NumPy's large arrays have huge pages
        gradient[plan.num_vectors :] = 0
        pairs = list(zip(_features(plan, read.size(1)), ctx.kept, strict=True))
        networks = [network.w2.start for part, _ in pairs for network in part.networks]

        def work(pair: tuple[_Feature, _Kept]) -> None:
            part, kept = pair
            _backward(part, numbers, kept, towards[part.bags], gradient.numpy())

        shared = len(networks) != len({*networks})  # by features of one table, whose gradients are sums
        list(map(work, pairs)) if shared else _on_all_threads(work, pairs)
        return gradient, None


def _on_all_threads(work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """What ``work`` returns for each part; the parts are dealt to the threads that torch has here."""
    threads = torch.get_num_threads()
    return list(map(work, parts) if threads == 1 else thread_pool(threads).map(work, parts))


class _Network(NamedTuple):
    """The rows of a class's network, among all that were read; a linear variant has only ``w2``."""

    w1: slice | None
    b1: slice | None
    w2: slice
    b2: slice | None


class _Feature(NamedTuple):
    """The part of a plan that belongs to one feature."""

    vectors: slice  # among all that was read
    runs: list[slice]  # the vectors of each class that the feature has, counted from its first one
    networks: list[_Network]  # of these classes
    bags: slice
    lengths: NDArray[np.int64]
    places: NDArray[np.int64]  # counted from the first vector
    weights: Numbers
    late: bool  # whether hidden vectors are summed before the last layer


def _features(plan: Plan, dim: int) -> list[_Feature]:
    """The features of a plan."""
    hidden = plan.network_rows[0]
    ids = np.concatenate([[0], plan.lengths.cumsum()])
    borders = np.searchsorted(plan.runs[:, 0], np.arange(len(plan.bag_counts) + 1))
    parts = []
    for feature, (num_bags, end) in enumerate(zip(plan.bag_counts, accumulate(plan.bag_counts), strict=True)):
        runs = plan.runs[borders[feature] : borders[feature + 1]].tolist()
        bags = slice(end - num_bags, end)
        first, last = (runs[0][2], runs[-1][3]) if runs else (0, 0)
        own = slice(ids[bags.start], ids[bags.stop])
        more_products = (num_bags * len(runs) - last + first) * hidden * dim
        fewer_sums = (own.stop - own.start) * (dim - hidden)
        late = hidden < dim and len(runs) > 0 and more_products <= _PRODUCTS_PER_SUM * fewer_sums
        parts.append(
            _Feature(
                slice(first, last),
                [slice(begin - first, end - first) for *_, begin, end in runs],
                [_network(plan, number) for _, number, *_ in runs],
                bags,
                plan.lengths[bags],
                plan.places[own] - first,
                plan.weights[own] if len(plan.weights) else plan.weights,
                late=late,
            )
        )
    return parts


def _network(plan: Plan, number: int) -> _Network:
    """The rows of the network of class ``number``: W1, b1, W2 and b2, or one matrix; see ``Path``."""
    start = plan.num_vectors + number * sum(plan.network_rows)
    rows = [slice(one, other) for one, other in pairwise(accumulate(plan.network_rows, initial=start))]
    return _Network(*rows) if len(rows) > 1 else _Network(None, None, rows[0], None)


class _Kept(NamedTuple):
    """What the backward pass of a feature needs, besides what was read."""

    hidden: Numbers  # (vectors, hidden)
    classes: NDArray[np.int64]  # of each vector: the part of its bag in which it is summed
    sums: Numbers  # (bags, parts, columns)
    weights: Numbers  # (bags, parts): what the vectors of each sum weigh together


def _forward(part: _Feature, numbers: Numbers, output: Numbers) -> _Kept:
    """Write the sums of a feature's bags (bags, dim)."""
    hidden = _hidden(part, numbers)
    return (_last_layer_of_sums if part.late else _sums_of_last_layer)(part, numbers, hidden, output)


def _last_layer_of_sums(part: _Feature, numbers: Numbers, hidden: Numbers, output: Numbers) -> _Kept:
    classes = np.repeat(np.arange(len(part.runs)), [run.stop - run.start for run in part.runs])
    weights = np.empty((len(output), len(part.runs)), output.dtype)
    sums = np.empty((*weights.shape, hidden.shape[1]), output.dtype)
    sum_bags(hidden, part.places, classes, part.lengths, part.weights, sums, weights)
    _multiply(sums.reshape(len(output), -1), _joined(numbers, [network.w2 for network in part.networks]), output)
    biases = [network.b2 for network in part.networks if network.b2 is not None]
    if biases:
        output += weights @ _joined(numbers, biases)
    return _Kept(hidden, classes, sums, weights)


def _sums_of_last_layer(part: _Feature, numbers: Numbers, hidden: Numbers, output: Numbers) -> _Kept:
    vectors = np.empty((len(hidden), output.shape[1]), output.dtype)
    for run, network in zip(part.runs, part.networks, strict=True):
        _multiply(hidden[run], numbers[network.w2], vectors[run])
        if network.b2 is not None:
            vectors[run] += numbers[network.b2]
    sums, weights = output.reshape(len(output), 1, output.shape[1]), np.empty((len(output), 1), output.dtype)
    classes = np.zeros(len(vectors), np.int64)
    sum_bags(vectors, part.places, classes, part.lengths, part.weights, sums, weights)
    return _Kept(hidden, classes, sums, weights)


def _backward(  # noqa: PLR0917  # each is an array of its own
    part: _Feature, numbers: Numbers, kept: _Kept, towards: Numbers, gradient: Numbers
) -> None:
    """Write the gradient of the vectors, from that of the output (bags, dim); add those of the networks."""
    through = _through_last_layer_of_sums if part.late else _through_sums_of_last_layer
    to_hidden = through(part, numbers, kept, towards, gradient)
    own = gradient[part.vectors]
    for run, network in zip(part.runs, part.networks, strict=True):
        if network.w1 is None or network.b1 is None:
            own[run] = to_hidden[run]
            continue
        to_sum = to_hidden[run] * (kept.hidden[run] > 0)
        gradient[network.w1] += _inner(to_sum, numbers[part.vectors][run])
        gradient[network.b1].reshape(-1)[: to_sum.shape[1]] += _total(to_sum)
        _multiply(to_sum, numbers[network.w1], own[run])


def _through_last_layer_of_sums(  # noqa: PLR0917  # each is an array of its own
    part: _Feature, numbers: Numbers, kept: _Kept, towards: Numbers, gradient: Numbers
) -> Numbers:
    to_sums, sums = np.empty_like(kept.sums), kept.sums.reshape(len(towards), -1)
    matrices = _joined(numbers, [network.w2 for network in part.networks])
    _multiply(towards, matrices.T, to_sums.reshape(len(towards), -1))
    of_matrices = _inner(sums, towards).reshape(len(part.networks), -1, towards.shape[1])
    of_biases = kept.weights.T @ towards
    for network, of_matrix, of_bias in zip(part.networks, of_matrices, of_biases, strict=True):
        gradient[network.w2] += of_matrix
        if network.b2 is not None:
            gradient[network.b2] += of_bias
    to_hidden = np.zeros_like(kept.hidden)
    add_to_vectors(to_sums, part.places, kept.classes, part.lengths, part.weights, to_hidden)
    return to_hidden


def _through_sums_of_last_layer(  # noqa: PLR0917  # each is an array of its own
    part: _Feature, numbers: Numbers, kept: _Kept, towards: Numbers, gradient: Numbers
) -> Numbers:
    vectors = np.zeros((len(kept.hidden), towards.shape[1]), towards.dtype)
    to_sums = towards.reshape(kept.sums.shape)
    add_to_vectors(to_sums, part.places, kept.classes, part.lengths, part.weights, vectors)
    to_hidden = np.empty_like(kept.hidden)
    for run, network in zip(part.runs, part.networks, strict=True):
        gradient[network.w2] += _inner(kept.hidden[run], vectors[run])
        if network.b2 is not None:
            gradient[network.b2] += _total(vectors[run])
        _multiply(vectors[run], numbers[network.w2].T, to_hidden[run])
    return to_hidden


def _hidden(part: _Feature, numbers: Numbers) -> Numbers:
    """The vectors (n, hidden) before the last layer, which are those that were read if there is only this layer."""
    vectors, found = numbers[part.vectors], None
    for run, network in zip(part.runs, part.networks, strict=True):
        if network.w1 is None or network.b1 is None:
            return vectors
        if found is None:
            found = np.empty((len(vectors), network.w1.stop - network.w1.start), vectors.dtype)
        _multiply(vectors[run], numbers[network.w1].T, found[run])
        found[run] += numbers[network.b1].reshape(-1)[: found.shape[1]]
        np.maximum(found[run], 0, out=found[run])
    return vectors if found is None else found


def _joined(numbers: Numbers, rows: list[slice]) -> Numbers:
    return np.concatenate([numbers[each] for each in rows])


def _total(rows: Numbers) -> Numbers:
    return np.asarray(np.ones(len(rows), rows.dtype) @ rows)  # a product is faster than numpy's sum


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
