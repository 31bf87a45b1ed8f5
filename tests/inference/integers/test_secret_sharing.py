"""Additive shares: they sum to the secret, say nothing about it alone, and carry linear maps."""

from __future__ import annotations

import pytest
import torch

from dlrm_torchrec.inference.integers.int64_matmul import int64_matmul
from dlrm_torchrec.inference.integers.secret_sharing import FRACTION_BITS, decode, encode, share


@pytest.mark.parametrize("parties", [2, 3, 5])
def test_shares_sum_to_the_secret_and_are_uniform(parties: int) -> None:
    values = encode(torch.zeros(20_000))
    shares = share(values, parties)
    assert len(shares) == parties
    assert torch.equal(torch.stack(shares).sum(0), values)
    for each in shares:
        bits = (each.unsqueeze(1) >> torch.arange(64)) & 1
        # each of 64 bits is a fair coin thrown 20,000 times: 6 standard deviations
        assert ((bits.double().mean(0) - 0.5).abs() < 6 * 0.5 / 20_000**0.5).all()


def test_a_linear_map_of_shares_is_shares_of_the_linear_map() -> None:
    generator = torch.Generator().manual_seed(1)
    x, weight = (torch.randn(9, 40, generator=generator).double(), torch.randn(40, 7, generator=generator).double())
    parts = [int64_matmul(part, encode(weight)) for part in share(encode(x), 3)]
    found = decode(torch.stack(parts).sum(0), 2 * FRACTION_BITS)
    rounding = 2.0 ** -(FRACTION_BITS + 1)  # of each factor
    assert ((found - x @ weight).abs() <= rounding * (x.abs().sum(1, True) + weight.abs().sum(0) + 40 * rounding)).all()


def test_fixed_point_keeps_the_sign_and_the_last_bit() -> None:
    x = torch.tensor([-1.5, 0.0, 2.0**-FRACTION_BITS, -(2.0**40)], dtype=torch.float64)
    assert torch.equal(decode(encode(x)), x)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"values in fixed point must be below 2\^47: got 1.5e\+20; scale them down"):
        encode(torch.tensor([1.5e20]))
    with pytest.raises(ValueError, match=r"must be below 2\^47: got nan"):
        encode(torch.tensor([float("nan")]))
    with pytest.raises(ValueError, match="parties must be at least 2: got 1; one party alone would see the secret"):
        share(torch.zeros(2, dtype=torch.int64), 1)
