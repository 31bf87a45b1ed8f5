"""The rows of a batch's ids in one loop over the ids, as machine code."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import float32, float64, int64, uint64
from numpy.typing import NDArray

from dlrm_torchrec.compiled import compiled
from dlrm_torchrec.embeddings.compositional.partitions.base import MIXED_BITS
from dlrm_torchrec.embeddings.mixing import GOLDEN, mix_word

Integers = NDArray[np.int64]
Floats = NDArray[np.float32]


_EXACT = 2**MIXED_BITS  # up to it, the product with a reciprocal in float64 misses a quotient by less than one
_UNUSED = np.uint64(64 - MIXED_BITS)


class Passes(NamedTuple):
    """What is written, in lines of numbers."""

    sources: Integers  # number of ids, 1 for a mean
    pieces: Integers  # source, first class row, the one after the last
    class_rows: Integers  # first row, number of classes, where its codes begin or -1, and a ``Digit``
    short_codes: NDArray[np.int16]
    long_codes: NDArray[np.int32]  # these begin after the short ones


class Written(NamedTuple):
    """Bags of rows; ``weights`` is empty where all are 1. ``bad_source`` is -1 unless an id is out of its range."""

    values: Integers
    lengths: Integers
    weights: Floats
    bad_source: int
    bad_value: int


@compiled(error_model="numpy")
def expand(  # noqa: PLR0917  # numba's functions have no keywords
    passes: Passes,
    ids: Integers,
    lengths: Integers,
    weights: Floats,
    count: bool,  # noqa: FBT001  # numba's functions have no keywords
) -> Written:
    """Bags of rows of bags of ``ids``; ``lengths`` has the bags of one source after another, ``weights`` may be empty.

    With ``count``, bags that have more ids than a partition has classes hold a class's row once, with the number or
    total weight of its ids.
    """
    sources, pieces, class_rows, _, _ = passes
    bags = len(lengths) // max(len(sources), 1)
    starts = np.zeros(len(sources) + 1, np.int64)
    for source in range(len(sources)):
        starts[source + 1] = starts[source] + lengths[source * bags : (source + 1) * bags].sum()
        for value in ids[starts[source] : starts[source + 1]]:
            if value < 0 or value >= sources[source, 0]:
                none = np.empty(0, np.int64)
                return Written(none, none, np.empty(0, np.float32), source, value)
    size, most, weighted = 0, 1, len(weights) > 0
    counted = np.zeros(len(class_rows), np.bool_)
    for source, first, last in pieces:
        num_ids = starts[source + 1] - starts[source]
        size += num_ids * (last - first)
        weighted |= sources[source, 1] == 1
        for row in range(first, last):
            counted[row] = count and class_rows[row, 1] <= num_ids // max(bags, 1)
            if counted[row]:
                weighted, most = True, max(most, class_rows[row, 1])
    rows, row_lengths = np.empty(size, np.int64), np.empty(len(pieces) * bags, np.int64)
    row_weights = np.empty(size if weighted else 0, np.float32)
    written = Written(rows, row_lengths, row_weights, -1, 0)
    sums = np.zeros(most, np.float32)
    position = 0
    for piece in range(len(pieces)):
        source, first, last = pieces[piece]
        own, width = ids[starts[source] : starts[source + 1]], last - first
        if weighted:
            found = np.empty((width, len(own)), np.int64)
            for row in range(first, last):
                _rows(passes, row, own, sources[source, 0], found[row - first], 1)
            batch = _Batch(
                found,
                weights[starts[source] : starts[source + 1]] if len(weights) else weights,
                lengths[source * bags : (source + 1) * bags],
                sources[source, 1] == 1,
                counted[first:last],
                class_rows[first:last],
            )
            position = _weighted(batch, written, piece * bags, position, sums)
        else:
            for row in range(first, last):
                _rows(passes, row, own, sources[source, 0], rows[position + row - first :], width)
            row_lengths[piece * bags : (piece + 1) * bags] = lengths[source * bags : (source + 1) * bags] * width
            position += len(own) * width
    return Written(rows[:position], row_lengths, row_weights[: position if weighted else 0], -1, 0)


class _Batch(NamedTuple):
    """A piece's rows (rows of an id, ids), and what gives them their weights."""

    found: Integers
    weights: Floats
    lengths: Integers
    mean: bool
    counted: NDArray[np.bool_]
    class_rows: Integers


@compiled(error_model="numpy")
def _rows(  # noqa: PLR0917  # numba's functions have no keywords
    passes: Passes, number: int, ids: Integers, limit: int, out: Integers, step: int
) -> None:
    """Write the row of each id to every ``step``-th number of ``out``."""
    first_row, _, begin, divisor, classes, hot, base, seed = passes.class_rows[number]
    shorts = len(passes.short_codes)
    if begin >= shorts:
        for i in range(len(ids)):
            out[i * step] = first_row + passes.long_codes[begin - shorts + ids[i]]
    elif begin >= 0:
        for i in range(len(ids)):
            out[i * step] = first_row + passes.short_codes[begin + ids[i]]
    elif hot > 0 or seed != 0:
        numbers = 2**MIXED_BITS if seed != 0 else limit - hot  # of different y below
        exact, inverse = numbers <= _EXACT, 1 / float64(divisor if divisor > 1 else classes)
        divides, wraps = divisor > 1, (numbers - 1) // divisor >= classes
        salt = uint64(seed) * GOLDEN
        for i in range(len(ids)):
            y = ids[i] - hot
            if y < 0:
                out[i * step] = first_row + min(ids[i], base - 1)
                continue
            if seed != 0:
                y = int64(mix_word(uint64(y) + salt) >> _UNUSED)
            if divides:
                y = _quotient(y, divisor, inverse) if exact else int64(uint64(y) // uint64(divisor))
            if wraps and not divides and exact:
                y = _below(y - int(y * inverse) * classes, classes)
            elif wraps:
                y = int64(uint64(y) % uint64(classes))
            out[i * step] = first_row + base + y
    elif divisor == 1 and limit <= classes:
        for i in range(len(ids)):
            out[i * step] = first_row + ids[i]
    elif divisor == 1:
        if limit <= _EXACT:
            inverse = 1 / float64(classes)
            for i in range(len(ids)):
                out[i * step] = first_row + _below(ids[i] - int(ids[i] * inverse) * classes, classes)
        else:
            for i in range(len(ids)):
                out[i * step] = first_row + int64(uint64(ids[i]) % uint64(classes))
    elif (limit - 1) // divisor < classes:
        if limit <= _EXACT:
            inverse = 1 / float64(divisor)
            for i in range(len(ids)):
                out[i * step] = first_row + _quotient(ids[i], divisor, inverse)
        else:
            for i in range(len(ids)):
                out[i * step] = first_row + int64(uint64(ids[i]) // uint64(divisor))
    else:
        for i in range(len(ids)):
            out[i * step] = first_row + int64(uint64(ids[i]) // uint64(divisor) % uint64(classes))


@compiled(error_model="numpy")
def _below(rest: int, modulus: int) -> int:
    """``rest`` mod ``modulus``, if it is off by one multiple at most."""
    if rest < 0:
        rest += modulus
    if rest >= modulus:
        rest -= modulus
    return rest


@compiled(error_model="numpy")
def _quotient(dividend: int, divisor: int, inverse: float) -> int:
    quotient = int(dividend * inverse)
    rest = dividend - quotient * divisor
    if rest < 0:
        quotient -= 1
    if rest >= divisor:
        quotient += 1
    return quotient


@compiled(error_model="numpy")
def _weighted(  # noqa: PLR0917  # numba's functions have no keywords
    batch: _Batch, written: Written, first_bag: int, position: int, sums: Floats
) -> int:
    """Write the bags of a piece with the weights of their rows from ``position`` on; where the next piece begins."""
    found, weights, lengths, mean, counted, class_rows = batch
    start = 0
    for bag in range(len(lengths)):
        end, before = start + lengths[bag], position
        share = float32(1) / float32(max(lengths[bag], 1)) if mean else float32(1)
        for i in range(start, end):
            for j in range(len(found)):
                if not counted[j]:
                    written.values[position] = found[j, i]
                    written.weights[position] = share * weights[i] if len(weights) else share
                    position += 1
        for j in range(len(found)):
            if counted[j]:
                first_row = class_rows[j, 0]
                for i in range(start, end):
                    sums[found[j, i] - first_row] += share * weights[i] if len(weights) else share
                for number in range(class_rows[j, 1]):
                    if sums[number] != 0:
                        written.values[position] = first_row + number
                        written.weights[position] = sums[number]
                        position += 1
                        sums[number] = float32(0)
        written.lengths[first_bag + bag], start = position - before, end
    return position
