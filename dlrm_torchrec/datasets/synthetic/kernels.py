"""Loops over the ids of synthetic rows, as machine code; each number equals the one that NumPy would compute."""

from __future__ import annotations

import numpy as np
from numba import float32, float64, int64, uint64
from numpy.typing import NDArray

from dlrm_torchrec.compiled import compiled, read_only
from dlrm_torchrec.datasets.random.counter import Words, uniform, word

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]

_MASK, _16, _32 = np.uint64(0xFFFF), np.uint64(16), np.uint64(32)
GROUPS = 64  # of the ids of a feature


@compiled(read_only(uint64), uint64, float64[::1])
def fill_uniforms(keys: Words, counter: np.uint64, uniforms: Floats) -> None:
    """The number in [0, 1) with the same counter for each of the keys."""
    for position in range(len(keys)):
        uniforms[position] = uniform(keys[position], counter)


@compiled(read_only(uint64), read_only(int64), uint64, float64[::1])
def fill_bags(keys: Words, offsets: Ids, counter: np.uint64, uniforms: Floats) -> None:
    """The numbers of bags, whose counters follow ``counter`` in each bag: offsets[i + 1] - offsets[i] of key i."""
    for bag in range(len(keys)):
        for position in range(offsets[bag], offsets[bag + 1]):
            uniforms[position] = uniform(keys[bag], counter + np.uint64(position - offsets[bag]))


@compiled(read_only(float64), int64, int64, int64[::1])
def fill_ids(positions: Floats, rows: int, multiplier: int, ids: Ids) -> None:
    """The ids at these positions, from 1, of popularity: ``Zipf.scatter`` of the ranks."""
    for place in range(len(positions)):
        # Rounding may move a point near 1 beyond the last row.
        rank = min(int64(positions[place]) - 1, rows - 1)
        ids[place] = rank * multiplier % rows


@compiled(uint64, read_only(int64), read_only(int64), float64, float64, read_only(float32), float64[:, ::1])
def add_effects(  # noqa: PLR0917  # numba's functions have no keywords
    key: np.uint64, ids: Ids, offsets: Ids, scale: float, grouped: float, normals: NDArray[np.float32], sums: Floats
) -> None:
    """Add ``scale`` times each bag's effects and slopes to ``sums`` (2, bags); without offsets, a bag has one id.

    ``grouped`` is the share of their variance that the ids of a group have in common.
    """
    own, common = np.sqrt(1 - grouped), np.sqrt(grouped)
    for bag in range(sums.shape[1]):
        first, last = (offsets[bag], offsets[bag + 1]) if len(offsets) else (bag, bag + 1)
        effect, slope = float64(0), float64(0)
        for position in range(first, last):
            bits = word(key, uint64(ids[position]))
            effect += own * normals[bits & _MASK]
            slope += own * normals[(bits >> _16) & _MASK]
            if grouped:
                bits = word(~key, (bits >> _32) % uint64(GROUPS))
                effect += common * normals[bits & _MASK]
                slope += common * normals[(bits >> _16) & _MASK]
        sums[0, bag] += effect * scale
        sums[1, bag] += slope * scale


@compiled(read_only(int64), read_only(int64), float64[:, ::1], float64[:, ::1])
def add_bags(places: Ids, offsets: Ids, effects: Floats, sums: Floats) -> None:
    """Add each bag's columns of ``effects`` (2, places) to ``sums`` (2, bags); without offsets, a bag has one place."""
    for bag in range(sums.shape[1]):
        first, last = (offsets[bag], offsets[bag + 1]) if len(offsets) else (bag, bag + 1)
        effect, slope = float64(0), float64(0)
        for position in range(first, last):
            effect += effects[0, places[position]]
            slope += effects[1, places[position]]
        sums[0, bag] += effect
        sums[1, bag] += slope
