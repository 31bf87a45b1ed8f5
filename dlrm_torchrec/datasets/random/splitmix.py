"""Random numbers inside compiled loops: those of ``counter``, one at a time."""

from __future__ import annotations

import numpy as np
from numba import float64, int64, uint64
from numpy.typing import NDArray

from dlrm_torchrec.datasets.compiled import compiled

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = np.uint64(0x94D049BB133111EB)
_ONE, _11, _27, _30, _31 = np.uint64(1), np.uint64(11), np.uint64(27), np.uint64(30), np.uint64(31)


@compiled(uint64, uint64)
def word(key: np.uint64, counter: np.uint64) -> np.uint64:
    """64 random bits: ``counter.words`` of one key and one counter."""
    bits = key + (counter + _ONE) * _GAMMA
    bits = (bits ^ (bits >> _30)) * _MULTIPLY_1
    bits = (bits ^ (bits >> _27)) * _MULTIPLY_2
    return bits ^ (bits >> _31)


@compiled(uint64, uint64)
def uniform(key: np.uint64, counter: np.uint64) -> float:
    """A number in [0, 1) on a grid of 2^-53: ``counter.uniforms`` of that word."""
    return float64(word(key, counter) >> _11) * 2.0**-53


@compiled(uint64, uint64, int64)
def below(key: np.uint64, counter: np.uint64, bound: int) -> int:
    """A whole number in [0, ``bound``), equally likely but for a share of ``bound`` x 2^-53."""
    return int(uniform(key, counter) * bound)


@compiled(uint64, uint64, float64[::1])
def _fill_uniforms(key: np.uint64, first: np.uint64, numbers: NDArray[np.float64]) -> None:
    for index in range(len(numbers)):
        numbers[index] = uniform(key, first + np.uint64(index))


def uniforms(key: np.uint64, first: int, count: int) -> NDArray[np.float64]:
    """``uniform`` of the counters ``first`` .. ``first + count - 1``: (count,)."""
    numbers = np.empty(count)
    _fill_uniforms(key, np.uint64(first), numbers)
    return numbers


def derived_key(*parts: int) -> np.uint64:
    """A key of its own for every sequence of numbers, such as (seed, feature)."""
    key = np.uint64(0)
    for part in parts:
        key = np.uint64(word(key, np.uint64(part)))
    return key
