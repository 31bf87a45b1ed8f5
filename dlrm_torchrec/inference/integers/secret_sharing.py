"""Real numbers as 64-bit integers, and integers as sums of random ones.

A value x is round(2^f x) modulo 2^64 (fixed point), split into shares that sum to it modulo 2^64. All but the last are
uniformly random, so that any of the shares but all together say nothing about x (additive secret sharing). A linear map
with known weights acts on every share by itself: the results sum to the result.
"""

from __future__ import annotations

import secrets

import torch

FRACTION_BITS = 16


def encode(x: torch.Tensor, fraction_bits: int = FRACTION_BITS) -> torch.Tensor:
    """``x`` in fixed point, int64; ValueError when a value does not fit."""
    scaled = (x.double() * 2.0**fraction_bits).round()
    largest = float(scaled.abs().max()) if scaled.numel() else 0.0
    if not largest < 2.0**63:
        raise ValueError(
            f"values in fixed point must be below 2^{63 - fraction_bits}: got {largest / 2.0**fraction_bits:g}; scale "
            "them down, or use fewer fraction bits"
        )
    return scaled.long()


def decode(values: torch.Tensor, fraction_bits: int = FRACTION_BITS) -> torch.Tensor:
    """The real numbers, float64, that ``values`` stand for; of a product, the bits of both factors."""
    return values.double() * 2.0**-fraction_bits


def share(values: torch.Tensor, parties: int) -> list[torch.Tensor]:
    """``parties`` tensors, any of which but all together are uniformly random, that sum to ``values`` modulo 2^64.

    Random bytes are the operating system's, fit for secrets. ValueError for fewer than two parties.
    """
    if parties < 2:
        raise ValueError(f"parties must be at least 2: got {parties}; with one there is no secret")
    shares = []
    for _ in range(parties - 1):
        noise = torch.frombuffer(bytearray(secrets.token_bytes(values.nbytes)), dtype=torch.int64).view_as(values)
        shares.append(noise)
        values = values - noise
    return [*shares, values]
