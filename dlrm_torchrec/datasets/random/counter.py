"""Random numbers that are pure functions of a key: no generator, no state, any row at any time.

Source: the splitmix64 finaliser, G. L. Steele, D. Lea, C. H. Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

Words = NDArray[np.uint64]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = np.uint64(0x94D049BB133111EB)
# A normal by inverse CDF at 2^16 equally likely points: mean 0, variance 0.9999, within 4.2 standard deviations.
_NORMAL: NDArray[np.float32] = (
    torch.special.ndtri((torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16)).float().numpy()
)


def words(key: Words | np.uint64 | int, counter: NDArray[np.integer] | int) -> Words:
    """64 random bits for every (key, counter), broadcast against each other."""
    key, counter = np.atleast_1d(key).astype(np.uint64), np.atleast_1d(counter).astype(np.uint64)
    bits = key + (counter + np.uint64(1)) * _GAMMA
    bits ^= bits >> np.uint64(30)
    bits *= _MULTIPLY_1
    bits ^= bits >> np.uint64(27)
    bits *= _MULTIPLY_2
    bits ^= bits >> np.uint64(31)
    return bits


def uniforms(bits: Words) -> NDArray[np.float64]:
    """Uniform float64 in [0, 1), one per word, on a grid of 2^-53."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normals(bits: Words) -> NDArray[np.float32]:
    """Standard normal float32, four per word: shape (..., W) gives (..., 4 W)."""
    return _NORMAL.take(np.ascontiguousarray(bits).view(np.uint16))


def permutation(size: int, *key: int) -> NDArray[np.int64]:
    """A random order of ``range(size)``, the same for the same key on every machine and version of NumPy."""
    state: Words = np.zeros(1, dtype=np.uint64)
    for part in key:
        state = words(state, part)
    return np.argsort(words(state, np.arange(size)))
