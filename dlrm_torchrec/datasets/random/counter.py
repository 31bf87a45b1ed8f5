"""Random numbers that are pure functions of a key and a counter, so any number can be computed at any time.

Functions with plural names take and return arrays. Functions with singular names are for compiled loops; they compute
the same numbers one at a time.

Source: G. L. Steele, D. Lea, C. H. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014 (SplitMix64).
Two other files have a copy of its finaliser, because they must not import this file: ``embeddings.mixing``, for
tensors on any device, and ``inference.lookups``, which packages carry. Tests check that all are equal.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import float64, int64, uint64
from numpy.typing import NDArray

from dlrm_torchrec.compiled import compiled

Words = NDArray[np.uint64]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio; its multiples are far apart (Knuth, volume 3, 6.4)
_MULTIPLY_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = np.uint64(0x94D049BB133111EB)
_ONE, _11, _27, _30, _31 = np.uint64(1), np.uint64(11), np.uint64(27), np.uint64(30), np.uint64(31)


def _finalise(bits: Any) -> Any:
    """SplitMix64's finaliser, a bijection of 64 bits; it changes an array in place."""
    bits ^= bits >> _30
    bits *= _MULTIPLY_1
    bits ^= bits >> _27
    bits *= _MULTIPLY_2
    bits ^= bits >> _31
    return bits


_finalise_word = compiled(uint64)(_finalise)


def words(key: NDArray[np.integer] | np.uint64 | int, counter: NDArray[np.integer] | int) -> Words:
    """64 random bits for every pair of a key and a counter; the two are broadcast."""
    key, counter = np.atleast_1d(key).astype(np.uint64), np.atleast_1d(counter).astype(np.uint64)
    bits: Words = _finalise(key + (counter + _ONE) * GOLDEN)
    return bits


@compiled(uint64, uint64)
def word(key: np.uint64, counter: np.uint64) -> np.uint64:
    """64 random bits, the same as ``words`` gives for this key and counter."""
    bits: np.uint64 = _finalise_word(key + (counter + _ONE) * GOLDEN)
    return bits


def uniforms(bits: Words) -> NDArray[np.float64]:
    """Uniform float64 in [0, 1), one per word, on a grid of 2^-53."""
    return (bits >> _11).astype(np.float64) * 2.0**-53


@compiled(uint64, uint64)
def uniform(key: np.uint64, counter: np.uint64) -> float:
    """A number in [0, 1) on a grid of 2^-53, the same as ``uniforms`` gives for this word."""
    return float64(word(key, counter) >> _11) * 2.0**-53


@compiled(uint64, uint64, int64)
def below(key: np.uint64, counter: np.uint64, bound: int) -> int:
    """A random whole number in [0, ``bound``); all are equally likely, up to a share of ``bound`` x 2^-53."""
    return int(uniform(key, counter) * bound)


def derived_key(*parts: int) -> np.uint64:
    """A different key for every sequence of numbers, such as (seed, feature)."""
    key = np.uint64(0)
    for part in parts:
        key = np.uint64(word(key, np.uint64(part)))
    return key
