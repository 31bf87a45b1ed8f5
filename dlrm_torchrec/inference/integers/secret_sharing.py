"""Secret sharing: encodes real numbers as 64-bit integers, and splits integers into random shares.

A value x is stored in fixed point as round(2^f x) modulo 2^64, and split into shares whose sum modulo 2^64 is this
integer (additive secret sharing). All shares but the last are uniformly random, so nobody learns anything about x
without all of them. A linear map with known weights can be applied to each share separately: the results sum to the
result.
"""

from __future__ import annotations

import secrets

import torch

FRACTION_BITS = 16


def encode(x: torch.Tensor, fraction_bits: int = FRACTION_BITS) -> torch.Tensor:
    """``x`` in fixed point, int64; raises ValueError when a value is too large."""
    scaled = (x.double() * 2.0**fraction_bits).round()
    largest = float(scaled.abs().max()) if scaled.numel() else 0.0
    if not largest < 2.0**63:
        raise ValueError(
            f"values in fixed point must be below 2^{63 - fraction_bits}: got {largest / 2.0**fraction_bits:g}; scale "
            "them down, or use fewer fraction bits"
        )
    return scaled.long()


def decode(values: torch.Tensor, fraction_bits: int = FRACTION_BITS) -> torch.Tensor:
    """The real numbers, float64, of the fixed-point ``values``; a product has the fraction bits of both factors."""
    return values.double() * 2.0**-fraction_bits


def share(values: torch.Tensor, parties: int) -> list[torch.Tensor]:
    """``parties`` tensors that sum to ``values`` modulo 2^64; without any one of them, the others are uniformly random.

    The random bytes come from the operating system and are safe for secrets. Raises ValueError for fewer than two
    parties.
    """
    if parties < 2:
        raise ValueError(f"parties must be at least 2: got {parties}; one party alone would see the secret")
    shares = []
    for _ in range(parties - 1):
        noise = torch.frombuffer(bytearray(secrets.token_bytes(values.nbytes)), dtype=torch.int64).view_as(values)
        shares.append(noise)
        values = values - noise
    return [*shares, values]
