"""Normally distributed numbers from random bits."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from dlrm_torchrec.datasets.random.counter import Words

# The inverse CDF at 2^16 equally likely points: mean 0, variance 0.9999, within 4.2 standard deviations.
NORMALS: NDArray[np.float32] = (
    torch.special.ndtri((torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16)).float().numpy()
)


def normals(bits: Words) -> NDArray[np.float32]:
    """Standard normal float32 numbers, four per word: shape (..., W) gives (..., 4 W)."""
    return NORMALS.take(np.ascontiguousarray(bits).view(np.uint16))
