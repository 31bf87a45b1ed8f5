"""What a path does on CPU between its matrix products: distinct ids, runs of equal classes, sums over bags."""

from __future__ import annotations

import numpy as np
from numba import uint64

from dlrm_torchrec.compiled import compiled
from dlrm_torchrec.embeddings.compositional.row_kernel import Floats, Integers


@compiled(error_model="numpy")
def distinct_ids(ids: Integers, counts: Integers) -> tuple[Integers, Integers, Integers]:
    """Every id of each feature once, in the order in which they come; how many each has; each id's place among them.

    ``counts`` is the number of ids of each feature.
    """
    found, places, found_counts = np.empty(len(ids), np.int64), np.empty(len(ids), np.int64), np.empty_like(counts)
    bits = 1
    while 1 << bits < 2 * counts.max():
        bits += 1
    slots = np.empty(1 << bits, np.int64)  # an open hash table of places
    last, shift = uint64(len(slots) - 1), uint64(64 - bits)
    total, end = 0, 0
    for feature in range(len(counts)):
        slots[:] = -1
        before = total
        start, end = end, end + counts[feature]
        for position in range(start, end):
            value = ids[position]
            slot = uint64(value) * uint64(0x9E3779B97F4A7C15) >> shift
            while slots[slot] >= 0 and found[slots[slot]] != value:
                slot = (slot + uint64(1)) & last
            if slots[slot] < 0:
                slots[slot] = total
                found[total] = value
                total += 1
            places[position] = slots[slot]
        found_counts[feature] = total - before
    return found[:total], found_counts, places


@compiled(error_model="numpy")
def order_by_class(
    classes: Integers, counts: Integers, num_classes: int, places: Integers
) -> tuple[Integers, Integers, Integers]:
    """The ids of each feature by class: their order, their places in it for ``places``, and runs of equal classes.

    ``counts`` is the number of ids of each feature. A run has a line: feature, class, first id, the one after the last.
    """
    order, ranks = np.empty(len(classes), np.int64), np.empty(len(classes), np.int64)
    runs = np.empty((len(counts) * num_classes, 4), np.int64)
    of_class = np.zeros(num_classes, np.int64)
    num_runs, start = 0, 0
    for feature in range(len(counts)):
        end = start + counts[feature]
        low, high = num_classes, 0
        for number in classes[start:end]:
            of_class[number] += 1
            low, high = min(low, number), max(high, number + 1)
        position = start
        for number in range(low, high):
            if of_class[number]:
                runs[num_runs] = (feature, number, position, position + of_class[number])
                num_runs += 1
                position, of_class[number] = position + of_class[number], position
        for position in range(start, end):
            number = classes[position]
            order[of_class[number]], ranks[position] = position, of_class[number]
            of_class[number] += 1
        of_class[low:high] = 0
        start = end
    return order, ranks[places], runs[:num_runs]


@compiled(error_model="numpy")
def sum_bags(  # noqa: PLR0917  # numba's functions have no keywords
    vectors: Floats, places: Integers, parts: Integers, lengths: Integers, weights: Floats, sums: Floats, counts: Floats
) -> None:
    """Write the sums of the vectors at ``places`` over each part of a bag, and the total weights of the parts.

    ``parts`` has the part of each vector, and ``sums`` (bags, parts, columns) and ``counts`` (bags, parts) have all
    parts of a bag. ``weights`` are of places, or empty.
    """
    sums[:], counts[:] = 0, 0
    position = 0
    for bag in range(len(lengths)):
        for _ in range(lengths[bag]):
            place = places[position]
            part = parts[place]
            if len(weights):
                counts[bag, part] += weights[position]
                for column in range(vectors.shape[1]):
                    sums[bag, part, column] += weights[position] * vectors[place, column]
            else:
                counts[bag, part] += 1
                for column in range(vectors.shape[1]):
                    sums[bag, part, column] += vectors[place, column]
            position += 1


@compiled(error_model="numpy")
def add_to_vectors(  # noqa: PLR0917  # numba's functions have no keywords
    sums: Floats, places: Integers, parts: Integers, lengths: Integers, weights: Floats, vectors: Floats
) -> None:
    """Add the gradients of ``sum_bags``'s sums to those of its vectors."""
    position = 0
    for bag in range(len(lengths)):
        for _ in range(lengths[bag]):
            place = places[position]
            part = parts[place]
            if len(weights):
                for column in range(vectors.shape[1]):
                    vectors[place, column] += weights[position] * sums[bag, part, column]
            else:
                for column in range(vectors.shape[1]):
                    vectors[place, column] += sums[bag, part, column]
            position += 1
