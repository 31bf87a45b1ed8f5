"""Lookups in float32 tables on CPU, and their updates, as machine code for the processor at hand.

The ids of a table are sorted, so that the gradients of a row are summed before its weights and moments are read and
written, once. The next rows are fetched into the cache meanwhile. Several threads share a table by the hash of a row's
number, and the gradients of a row are always summed in the order of the batch, so that the results are the same bit
for bit for any number of threads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]  # no stubs
from numba import float32, types, uint32, uint64
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from dlrm_torchrec.compiled import compiled

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

SGD, ADAGRAD, ROWWISE_ADAGRAD, ADAM = range(4)

MOST_ROWS = 2**32  # a row's number and the place of its gradient are sorted as one number of 64 bits
MULTIPLE = 4  # dims are multiples of it, as FBGEMM's are, so that places of gradients fit 32 bits
AHEAD = 16  # rows that are fetched before they are needed
LINE = 16  # float32 numbers that memory moves together
_DIGIT = 11  # bits that one pass of the sort looks at, at most


class Layout(NamedTuple):
    """Where the tables lie. One row of ``tables`` is: first feature, feature after the last, rows, dim, offset of
    the weights, offset of the first moment."""

    tables: Integers
    columns: Integers  # where each feature's vector begins in a row of the output, and the width of this row


class Bags(NamedTuple):
    """A batch: the ids of all bags, ordered by feature, and where each bag begins."""

    ids: Integers
    offsets: Integers
    factors: Floats  # of each id; empty if all are 1


class Numbers(NamedTuple):
    """What is trained: flat arrays; a moment that the optimizer lacks is empty."""

    weights: Floats
    moment1: Floats
    moment2: Floats


class Rule(NamedTuple):
    """An optimizer. ``weight_decay`` times the weights is added to the gradient."""

    kind: int
    lr: float
    eps: float
    weight_decay: float
    beta1: float
    beta2: float
    step: int  # from 1


class Part(NamedTuple):
    """What one thread does of the whole."""

    number: int
    of: int


# Sums may be reordered, as vectors need it, and their order is the same in each call. Infinities and NaNs stay.
FAST = {"fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}


def _prefetch(_context: Any, array: Any, index: Any) -> Any:
    """For numba's compiler: the instruction of a processor that reads ahead."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        proxy: Any = cgutils
        data = proxy.create_struct_proxy(signature.args[0])(context, builder, value=arguments[0]).data
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        prefetch = proxy.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag]), "llvm.prefetch.p0"
        )
        address = builder.bitcast(builder.gep(data, [arguments[1]]), byte)
        # To read, keep in all caches, data. What is fetched to be written takes an AMD half as long again.
        builder.call(prefetch, [address, flag(0), flag(3), flag(1)])
        return context.get_dummy_value()

    return types.void(array, index), generate


# fetch(array, index) asks the memory for a number of a flat array, and does not wait for it.
fetch: Any = intrinsic(_prefetch)


@compiled(**FAST)
def look_up(layout: Layout, bags: Bags, weights: Floats, output: Floats, part: Part) -> None:  # noqa: PLR0917
    """Write a thread's bags into ``output``: sums of rows times factors, (batch size * width) numbers."""
    tables, columns = layout
    ids, offsets, factors = bags
    features = len(columns) - 1
    batch_size = (len(offsets) - 1) // features
    width = uint64(columns[features])
    weighted = len(factors) > 0
    done, share = 0, _share(layout, bags, part)
    for first, last, _, dim, base, _ in tables:
        size = uint64(dim)
        for feature in range(first, last):
            work = (offsets[(feature + 1) * batch_size] - offsets[feature * batch_size] + batch_size) * dim
            low, high = _cut(done, work, batch_size, share)
            done += work
            stop = offsets[feature * batch_size + high]
            for bag in range(low, high):
                out = uint64(bag) * width + uint64(columns[feature])
                begin, end = offsets[feature * batch_size + bag], offsets[feature * batch_size + bag + 1]
                if begin == end:
                    for column in range(size):
                        output[out + column] = float32(0)
                for position in range(begin, end):
                    if position + AHEAD < stop:
                        after = uint64(base) + uint64(ids[position + AHEAD]) * size
                        for column in range(uint64(0), size, uint64(LINE)):
                            fetch(weights, after + column)
                    row = uint64(base) + uint64(ids[position]) * size
                    factor = factors[position] if weighted else float32(1)
                    if position == begin:
                        for column in range(size):
                            output[out + column] = factor * weights[row + column]
                    else:
                        for column in range(size):
                            output[out + column] += factor * weights[row + column]


@compiled(**FAST)
def update(  # noqa: PLR0917  # numba's functions have no keywords
    layout: Layout, bags: Bags, numbers: Numbers, rule: Rule, gradient: Floats, part: Part
) -> None:
    """Apply an optimizer to a thread's rows; ``gradient`` has the form of ``look_up``'s output."""
    offsets, factors = bags.offsets, bags.factors
    batch_size = (len(offsets) - 1) // (len(layout.columns) - 1)
    longest = 0
    for first, last, _, _, _, _ in layout.tables:
        longest = max(longest, offsets[last * batch_size] - offsets[first * batch_size])
    keys, others = np.empty(longest, np.uint64), np.empty(longest, np.uint64)
    places = np.empty(longest if len(factors) else 0, np.uint32)
    done, share = 0, _share(layout, bags, part)
    for table in range(len(layout.tables)):
        first, last, rows, dim, _, _ = layout.tables[table]
        begin, end = offsets[first * batch_size], offsets[last * batch_size]
        work = (end - begin + (last - first) * batch_size) * dim
        low, high = _cut(done, work, 2**32, share)
        done += work
        if low < high and begin < end:
            count = _fill(layout, bags, table, low, high, keys, places)
            ordered = sort_keys(keys[:count], others[:count], rows)
            _update_rows(layout.tables[table], factors[begin:], numbers, rule, gradient, ordered, places)


@compiled()
def _share(layout: Layout, bags: Bags, part: Part) -> tuple[int, int]:
    """Where a thread's work begins and ends, in numbers that are read."""
    features = len(layout.columns) - 1
    batch_size = (len(bags.offsets) - 1) // features
    work = 0
    for table in range(len(layout.tables)):
        first, last, _, dim, _, _ = layout.tables[table]
        ids = bags.offsets[last * batch_size] - bags.offsets[first * batch_size]
        work += (ids + (last - first) * batch_size) * dim
    return work * part.number // part.of, work * (part.number + 1) // part.of


@compiled()
def _cut(done: int, work: int, units: int, share: tuple[int, int]) -> tuple[int, int]:
    """Which of ``units`` equal pieces of the work that begins at ``done`` belong to a thread's share of all work."""
    if work == 0:
        return 0, 0
    low, high = min(max(share[0] - done, 0), work) / work, min(max(share[1] - done, 0), work) / work
    return int(units * low), int(units * high)


@compiled()
def _fill(  # noqa: PLR0917  # numba's functions have no keywords
    layout: Layout, bags: Bags, table: int, low: int, high: int, keys: NDArray[np.uint64], places: NDArray[np.uint32]
) -> int:
    """Write the keys of a table's ids whose hash is in ``low..high - 1``; how many these are.

    A key has the row above bit 32, and below it the place of the gradient of its bag, or if ids have factors, the
    position of the id, whose gradient is then at ``places``.
    """
    tables, columns = layout
    ids, offsets, _ = bags
    batch_size = (len(offsets) - 1) // (len(columns) - 1)
    width = columns[len(columns) - 1] // MULTIPLE
    first, last, _, _, _, _ = tables[table]
    begin = uint64(offsets[first * batch_size])
    weighted, whole = len(places) > 0, high - low == 2**32
    count = uint64(0)
    for feature in range(first, last):
        for bag in range(batch_size):
            place = uint64(bag * width + columns[feature] // MULTIPLE)
            at = feature * batch_size + bag
            for position in range(uint64(offsets[at]), uint64(offsets[at + 1])):
                row = uint64(ids[position])
                if weighted:
                    places[position - begin] = uint32(place)
                    keys[count] = row << uint64(32) | (position - begin)
                else:
                    keys[count] = row << uint64(32) | place
                if whole:
                    count += uint64(1)
                else:
                    # Adjacent rows are one thread's, because their moments may share a line of the cache.
                    hashed = int(((row // uint64(LINE)) * uint64(0x9E3779B1)) & uint64(0xFFFFFFFF))
                    count += uint64(hashed >= low and hashed < high)
    return int(count)


@compiled()
def sort_keys(keys: NDArray[np.uint64], others: NDArray[np.uint64], rows: int) -> NDArray[np.uint64]:
    """The keys, stably sorted by row, in ``keys`` or ``others``: digits are counted, the lowest first."""
    bits = 0
    while (rows - 1) >> bits:
        bits += 1
    passes = (bits + _DIGIT - 1) // _DIGIT
    digit_bits = (bits + passes - 1) // passes if passes else 0  # equal digits need the fewest counters
    starts = np.empty(1 << digit_bits, np.uint32)
    last = uint64(len(starts) - 1)
    for number in range(passes):
        shift = uint64(32 + number * digit_bits)
        starts[:] = 0
        for position in range(len(keys)):
            starts[(keys[position] >> shift) & last] += uint32(1)
        start = uint32(0)
        for digit in range(len(starts)):
            start, starts[digit] = start + starts[digit], start
        for position in range(len(keys)):
            value = (keys[position] >> shift) & last
            others[starts[value]] = keys[position]
            starts[value] += uint32(1)
        keys, others = others, keys
    return keys


@compiled(**FAST)
def _update_rows(  # noqa: PLR0917  # numba's functions have no keywords
    table: Integers,
    factors: Floats,
    numbers: Numbers,
    rule: Rule,
    gradient: Floats,
    keys: NDArray[np.uint64],
    places: NDArray[np.uint32],
) -> None:
    weights, moment1, moment2 = numbers
    dim, base, moments = uint64(table[3]), uint64(table[4]), uint64(table[5])
    weighted, count, below = len(places) > 0, uint64(len(keys)), uint64(0xFFFFFFFF)
    kind, step = rule.kind, step_of(rule)
    total = np.empty(dim, np.float32)
    position = uint64(0)
    while position < count:
        row, fresh = keys[position] >> uint64(32), True
        while position < count and keys[position] >> uint64(32) == row:
            if position + uint64(AHEAD) < count:
                key = keys[position + uint64(AHEAD)]
                start, at = base + (key >> uint64(32)) * dim, moments + (key >> uint64(32)) * dim
                place = (uint64(places[key & below]) if weighted else key & below) * uint64(MULTIPLE)
                if kind == ROWWISE_ADAGRAD:
                    fetch(moment1, moments + (key >> uint64(32)))
                for column in range(uint64(0), dim, uint64(LINE)):
                    fetch(weights, start + column)
                    fetch(gradient, place + column)
                    if kind in (ADAGRAD, ADAM):
                        fetch(moment1, at + column)
                    if kind == ADAM:
                        fetch(moment2, at + column)
            low = keys[position] & below
            place = (uint64(places[low]) if weighted else low) * uint64(MULTIPLE)
            factor = factors[low] if weighted else float32(1)
            if fresh:
                for column in range(dim):
                    total[column] = factor * gradient[place + column]
            else:
                for column in range(dim):
                    total[column] += factor * gradient[place + column]
            position, fresh = position + uint64(1), False
        move_row(table, numbers, step, row, total)


class Step(NamedTuple):
    """The numbers of a rule, as one update of a row takes them."""

    kind: int
    lr: np.float32
    eps: np.float32
    decay: np.float32
    beta1: np.float32
    beta2: np.float32
    rest1: np.float32
    rest2: np.float32
    rate: np.float32
    scale: np.float32


@compiled()
def step_of(rule: Rule) -> Step:
    """The numbers of ``rule`` at its step."""
    return Step(
        rule.kind,
        float32(rule.lr),
        float32(rule.eps),
        float32(rule.weight_decay),
        float32(rule.beta1),
        float32(rule.beta2),
        float32(1 - rule.beta1),
        float32(1 - rule.beta2),
        float32(rule.lr / (1 - rule.beta1**rule.step)) if rule.kind == ADAM else float32(rule.lr),
        float32(1 / np.sqrt(1 - rule.beta2**rule.step)) if rule.kind == ADAM else float32(1),
    )


@compiled(**FAST)
def move_row(table: Integers, numbers: Numbers, step: Step, row: int, total: Floats) -> None:  # noqa: PLR0917
    """Update the weights and moments of a table's ``row`` by its gradient ``total``, which is overwritten."""
    weights, moment1, moment2 = numbers
    kind, lr, eps, decay, beta1, beta2, rest1, rest2, rate, scale = step
    dim, base, moments = uint64(table[3]), uint64(table[4]), uint64(table[5])
    start, at = base + uint64(row) * dim, moments + uint64(row) * dim
    if decay != 0:
        for column in range(dim):
            total[column] += decay * weights[start + column]
    if kind == SGD:
        for column in range(dim):
            weights[start + column] -= lr * total[column]
    elif kind == ROWWISE_ADAGRAD:
        squares = float32(0)
        for column in range(dim):
            squares += total[column] * total[column]
        moment = moment1[moments + uint64(row)] + squares / float32(dim)
        moment1[moments + uint64(row)] = moment
        factor = lr / (np.sqrt(moment) + eps)
        for column in range(dim):
            weights[start + column] -= factor * total[column]
    elif kind == ADAGRAD:
        for column in range(dim):
            moment = moment1[at + column] + total[column] * total[column]
            moment1[at + column] = moment
            weights[start + column] -= lr * total[column] / (np.sqrt(moment) + eps)
    else:
        for column in range(dim):
            mean = beta1 * moment1[at + column] + rest1 * total[column]
            moment = beta2 * moment2[at + column] + rest2 * total[column] * total[column]
            moment1[at + column], moment2[at + column] = mean, moment
            weights[start + column] -= rate * mean / (np.sqrt(moment) * scale + eps)
