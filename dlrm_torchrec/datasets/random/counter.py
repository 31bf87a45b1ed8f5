"""Random numbers that are pure functions of a key and a counter: no generator, no state, any row at any time.

The plural names take and give arrays; the singular ones are for compiled loops, one number at a time, and give the same
numbers.

Source: G. L. Steele, D. Lea, C. H. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014 (SplitMix64).
Two places write its finaliser once more, since they must not import this one: ``embeddings.initialize``, for tensors on
any device, and ``inference.predictor``, which packages carry as a single file. Tests hold them equal.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import float64, int64, uint64
from numpy.typing import NDArray

from dlrm_torchrec.datasets.compiled import compiled

Words = NDArray[np.uint64]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: its multiples lie far apart (Knuth, volume 3, 6.4)
_MULTIPLY_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = np.uint64(0x94D049BB133111EB)
_ONE, _11, _27, _30, _31 = np.uint64(1), np.uint64(11), np.uint64(27), np.uint64(30), np.uint64(31)


def _finalise(bits: Any) -> Any:
    """SplitMix64's finaliser, a bijection of 64 bits; an array is changed in place."""
    bits ^= bits >> _30
    bits *= _MULTIPLY_1
    bits ^= bits >> _27
    bits *= _MULTIPLY_2
    bits ^= bits >> _31
    return bits


_finalise_word = compiled(uint64)(_finalise)


def words(key: NDArray[np.integer] | np.uint64 | int, counter: NDArray[np.integer] | int) -> Words:
    """64 random bits for every (key, counter), broadcast against each other."""
    key, counter = np.atleast_1d(key).astype(np.uint64), np.atleast_1d(counter).astype(np.uint64)
    bits: Words = _finalise(key + (counter + _ONE) * GOLDEN)
    return bits


@compiled(uint64, uint64)
def word(key: np.uint64, counter: np.uint64) -> np.uint64:
    """64 random bits: ``words`` of one key and one counter."""
    bits: np.uint64 = _finalise_word(key + (counter + _ONE) * GOLDEN)
    return bits


def uniforms(bits: Words) -> NDArray[np.float64]:
    """Uniform float64 in [0, 1), one per word, on a grid of 2^-53."""
    return (bits >> _11).astype(np.float64) * 2.0**-53


@compiled(uint64, uint64)
def uniform(key: np.uint64, counter: np.uint64) -> float:
    """A number in [0, 1) on a grid of 2^-53: ``uniforms`` of that word."""
    return float64(word(key, counter) >> _11) * 2.0**-53


@compiled(uint64, uint64, int64)
def below(key: np.uint64, counter: np.uint64, bound: int) -> int:
    """A whole number in [0, ``bound``), equally likely but for a share of ``bound`` x 2^-53."""
    return int(uniform(key, counter) * bound)


def derived_key(*parts: int) -> np.uint64:
    """A key of its own for every sequence of numbers, such as (seed, feature)."""
    key = np.uint64(0)
    for part in parts:
        key = np.uint64(word(key, np.uint64(part)))
    return key
