"""Numbers that look random, from numbers in order, on any device."""

from __future__ import annotations

import numpy as np
import torch
from numba import uint64

from dlrm_torchrec.compiled import compiled

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio; its multiples are far apart (Knuth, volume 3, 6.4)


def mix(x: torch.Tensor) -> torch.Tensor:
    """SplitMix64's finaliser (Steele et al., OOPSLA 2014), that of ``datasets.random``, on int64 that wraps around."""
    x = (x ^ (x >> 30 & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return x ^ (x >> 31 & 0x1FFFFFFFF)


@compiled(uint64)
def mix_word(bits: np.uint64) -> np.uint64:
    """The same, of one number."""
    bits = (bits ^ (bits >> uint64(30))) * uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> uint64(27))) * uint64(0x94D049BB133111EB)
    return bits ^ (bits >> uint64(31))
