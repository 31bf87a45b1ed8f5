"""Bags of products of rows in float32 tables on CPU, and their updates, as machine code for the processor at hand.

An id's vector is the product of the rows of its k classes. Ids are sorted by the row of their first class, so that this
row is read and written once. The later classes are few: their gradients are summed in memory of their own, and their
rows are updated at the end.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import float32, int64, uint32, uint64
from numpy.typing import NDArray

from dlrm_torchrec.compiled import compiled
from dlrm_torchrec.sharding.modules.update_kernels import (
    ADAGRAD,
    ADAM,
    AHEAD,
    FAST,
    LINE,
    MULTIPLE,
    ROWWISE_ADAGRAD,
    Floats,
    Integers,
    Numbers,
    Rule,
    Step,
    fetch,
    move_row,
    sort_keys,
    step_of,
)


class ProductLayout(NamedTuple):
    """Where the tables lie in one array of rows.

    One line of ``tables`` is: first feature, feature after the last, first row, rows of the first partition, rows of
    all later partitions.
    """

    tables: Integers
    num_features: int
    dim: int


class ProductBags(NamedTuple):
    """A batch: the rows (k, ids) of the classes of all ids, ordered by feature, and where each bag begins."""

    rows: Integers
    offsets: Integers
    factors: Floats  # of each id; empty if all are 1


@compiled(**FAST)
def look_up_products(layout: ProductLayout, bags: ProductBags, weights: Floats, output: Floats) -> None:
    """Write sums of products into ``output``: batch size x features x dim numbers."""
    rows, offsets, factors = bags
    features, dim = layout.num_features, uint64(layout.dim)
    batch_size = (len(offsets) - 1) // features
    product = np.empty(dim, np.float32)
    stop = rows.shape[1]
    for feature in range(features):
        for bag in range(batch_size):
            out = (uint64(bag) * uint64(features) + uint64(feature)) * dim
            at = feature * batch_size + bag
            for column in range(dim):
                output[out + column] = float32(0)
            for position in range(offsets[at], offsets[at + 1]):
                if position + AHEAD < stop:
                    after = uint64(rows[0, position + AHEAD]) * dim
                    for column in range(uint64(0), dim, uint64(LINE)):
                        fetch(weights, after + column)
                first, factor = uint64(rows[0, position]) * dim, factors[position] if len(factors) else float32(1)
                if len(rows) == 2:
                    second = uint64(rows[1, position]) * dim
                    for column in range(dim):
                        output[out + column] += factor * weights[first + column] * weights[second + column]
                else:
                    _multiply(weights, rows, position, -1, factor, product)
                    for column in range(dim):
                        output[out + column] += product[column]


@compiled(**FAST)
def _multiply(  # noqa: PLR0917  # numba's functions have no keywords
    weights: Floats, rows: Integers, position: int, left_out: int, factor: np.float32, product: Floats
) -> None:
    """Write ``factor`` times the rows of an id's classes into ``product``, without the one of the class left out."""
    dim = uint64(len(product))
    for column in range(dim):
        product[column] = factor
    for number in range(len(rows)):
        if number != left_out:
            start = uint64(rows[number, position]) * dim
            for column in range(dim):
                product[column] *= weights[start + column]


@compiled(**FAST)
def update_products(  # noqa: PLR0917  # numba's functions have no keywords
    layout: ProductLayout, bags: ProductBags, numbers: Numbers, rule: Rule, gradient: Floats
) -> None:
    """Apply an optimizer to the rows of all ids; ``gradient`` has the form of the output."""
    features, dim = layout.num_features, uint64(layout.dim)
    batch_size = (len(bags.offsets) - 1) // features
    longest, most = 0, 0
    for first, last, _, _, later in layout.tables:
        longest = max(longest, bags.offsets[last * batch_size] - bags.offsets[first * batch_size])
        most = max(most, later)
    keys, others, places = np.empty(longest, np.uint64), np.empty(longest, np.uint64), np.empty(longest, np.uint32)
    memory = _Memory(
        np.empty(most * layout.dim, np.float32),
        np.zeros(most, np.bool_),
        np.empty(dim, np.float32),
        np.empty(dim, np.float32),
        np.array([0, 0, 0, layout.dim, 0, 0], np.int64),
    )
    step = step_of(rule)
    for first, last, first_row, firsts, later in layout.tables:
        begin, end = bags.offsets[first * batch_size], bags.offsets[last * batch_size]
        for feature in range(first, last):
            for bag in range(batch_size):
                at = feature * batch_size + bag
                place = (uint64(bag) * uint64(features) + uint64(feature)) * (dim // uint64(MULTIPLE))
                for position in range(bags.offsets[at], bags.offsets[at + 1]):
                    row, low = uint64(bags.rows[0, position] - first_row), uint64(position - begin)
                    keys[position - begin] = row << uint64(32) | low
                    places[position - begin] = uint32(place)
        if begin < end:
            ordered = sort_keys(keys[: end - begin], others[: end - begin], firsts)
            own = ProductBags(bags.rows[:, begin:end], bags.offsets, bags.factors[begin:])
            _update_table((first_row, firsts, later), own, ordered, places, numbers, step, gradient, memory)


class _Memory(NamedTuple):
    """What is used again for each table."""

    sums: Floats  # the gradients of later rows
    touched: NDArray[np.bool_]  # which of them have one
    total: Floats  # the gradient of a row
    product: Floats  # of some rows of an id
    whole: Integers  # all rows as a table for ``move_row``


@compiled(**FAST)
def _update_table(  # noqa: PLR0917  # numba's functions have no keywords
    table: tuple[int, int, int],
    bags: ProductBags,
    keys: NDArray[np.uint64],
    places: NDArray[np.uint32],
    numbers: Numbers,
    step: Step,
    gradient: Floats,
    memory: _Memory,
) -> None:
    sums, touched, total, product, whole = memory
    first_row, firsts, later = table
    later_row = first_row + firsts
    weights, moment1, moment2 = numbers
    dim, count, below = uint64(len(total)), uint64(len(keys)), uint64(0xFFFFFFFF)
    position = uint64(0)
    while position < count:
        row = uint64(first_row) + (keys[position] >> uint64(32))
        own = row * dim
        for column in range(dim):
            total[column] = float32(0)
        while position < count and uint64(first_row) + (keys[position] >> uint64(32)) == row:
            if position + uint64(AHEAD) < count:
                key = keys[position + uint64(AHEAD)]
                after = uint64(first_row) + (key >> uint64(32))
                if step.kind == ROWWISE_ADAGRAD:
                    fetch(moment1, after)
                for column in range(uint64(0), dim, uint64(LINE)):
                    fetch(weights, after * dim + column)
                    fetch(gradient, uint64(places[key & below]) * uint64(MULTIPLE) + column)
                    if step.kind in (ADAGRAD, ADAM):
                        fetch(moment1, after * dim + column)
                    if step.kind == ADAM:
                        fetch(moment2, after * dim + column)
            low = int64(keys[position] & below)
            place = uint64(places[low]) * uint64(MULTIPLE)
            factor = bags.factors[low] if len(bags.factors) else float32(1)
            for number in range(1, len(bags.rows)):
                later_class = bags.rows[number, low] - later_row
                if not touched[later_class]:
                    touched[later_class] = True
                    for column in range(uint64(later_class) * dim, uint64(later_class + 1) * dim):
                        sums[column] = float32(0)
            if len(bags.rows) == 2:
                second, sum_at = uint64(bags.rows[1, low]) * dim, uint64(bags.rows[1, low] - later_row) * dim
                for column in range(dim):
                    each = factor * gradient[place + column]
                    total[column] += each * weights[second + column]
                    sums[sum_at + column] += each * weights[own + column]
            else:
                for number in range(len(bags.rows)):
                    _multiply(weights, bags.rows, low, number, factor, product)
                    if number == 0:
                        for column in range(dim):
                            total[column] += gradient[place + column] * product[column]
                    else:
                        sum_at = uint64(bags.rows[number, low] - later_row) * dim
                        for column in range(dim):
                            sums[sum_at + column] += gradient[place + column] * product[column]
            position += uint64(1)
        move_row(whole, numbers, step, int64(row), total)
    for number in range(later):
        if touched[number]:
            for column in range(dim):
                total[column] = sums[uint64(number) * dim + column]
            move_row(whole, numbers, step, later_row + number, total)
            touched[number] = False
