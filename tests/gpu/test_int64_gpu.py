"""Exact int64 products on a CUDA device, where torch has none of its own."""

from __future__ import annotations

import pytest
import torch

from dlrm_torchrec.inference.integers.int64_matmul import int64_matmul

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("shape", [(1, 1, 1), (33, 70, 9), (5, 9000, 2), (256, 1024, 512)])
def test_it_is_the_cpus_product(shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    a, b = (torch.randint(-(2**63), 2**63 - 1, size) for size in ((m, k), (k, n)))
    assert torch.equal(int64_matmul(a.cuda(), b.cuda()).cpu(), a @ b)
