"""Blocked attention against a float64 loop over pairs of tokens."""

from __future__ import annotations

import random

import pytest
import torch

from dlrm_torchrec.models.hstu.attention.bias import TIME_BUCKETS, BiasTables, time_buckets
from dlrm_torchrec.models.hstu.attention.layout import BLOCKS, TILE_SCORES, Layout, make_layout
from dlrm_torchrec.models.hstu.attention.silu import silu_attention
from tests.models.hstu import loops

SHAPES = 200


@pytest.fixture(params=[(2, 8), (3, 20), (128, 2**17)], ids="blocks of {0[0]}, {0[1]} scores".format, autouse=True)
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tiles are many, on and off the diagonal, square and wide, in sequences that a loop can follow."""
    block, scores = request.param
    monkeypatch.setitem(BLOCKS, "cpu", block)
    monkeypatch.setitem(TILE_SCORES, "cpu", scores)


def draw(seed: int, dtype: torch.dtype) -> tuple[list[tuple[int, int]], list[torch.Tensor], BiasTables | None, Layout]:
    """Users, queries, keys and values, a bias or none, and the layout."""
    choose, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    counts = [
        (choose.choice([0, 1, 2, choose.randrange(14)]), choose.choice([0, 0, 1, 3]))
        for _ in range(choose.randrange(7))
    ]
    tokens, heads, key_dim, value_dim = sum(map(sum, counts)), *(choose.randrange(1, 5) for _ in range(3))
    rows = [
        torch.randn(tokens, heads, dim, generator=generator).to(dtype).requires_grad_()
        for dim in (key_dim, key_dim, value_dim)
    ]
    bias = None
    if choose.random() < 0.6:
        learned = [
            torch.randn(size, generator=generator, dtype=torch.float64)
            for size in (1 + choose.randrange(9), TIME_BUCKETS)
        ]
        wide = dtype if dtype == torch.float64 else torch.float32
        times = [torch.randint(10 ** choose.randrange(1, 7), (tokens,), generator=generator) for _ in range(2)]
        bias = BiasTables(*(each.to(wide).requires_grad_() for each in learned), *times)
    visible, candidates = (torch.tensor([each[side] for each in counts], dtype=torch.int32) for side in (0, 1))
    return counts, rows, bias, make_layout(visible, candidates)


def gradients(outputs: torch.Tensor, inputs: list[torch.Tensor], seed: int) -> list[torch.Tensor]:
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = torch.autograd.grad((outputs.double() * weights).sum(), inputs, allow_unused=True)
    return [torch.zeros_like(each) if grad is None else grad for each, grad in zip(inputs, found, strict=True)]


def compare(seed: int, dtype: torch.dtype, tolerance: float) -> None:
    counts, rows, bias, layout = draw(seed, dtype)
    if not layout.tokens:
        assert silu_attention(*rows, layout, scale=0.5, divisor=7, bias=bias).shape == rows[2].shape
        return
    inputs = [*rows, *(bias[:2] if bias else ())]
    exact = [each.detach().double().requires_grad_() for each in inputs]
    found = silu_attention(*rows, layout, scale=0.5, divisor=7, bias=bias)
    q, k, v = exact[:3]
    tables = (*exact[3:], *bias[2:]) if bias else None
    expected = loops.attention(q, k, v, counts, scale=0.5, divisor=7, bias=tables)
    assert found.dtype == dtype
    pairs = [(found, expected), *zip(gradients(found, inputs, seed), gradients(expected, exact, seed), strict=True)]
    for ours, theirs in pairs:
        scale = max(1.0, float(theirs.detach().abs().max()))
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance * scale)


def test_outputs_and_gradients_are_those_of_a_loop_in_float64() -> None:
    for _ in range(SHAPES // 3 + 1):
        compare(random.randrange(10**9), torch.float64, 1e-9)


def test_single_and_half_precision_are_close() -> None:
    for seed in range(8):
        compare(seed, torch.float32, 1e-5)
        compare(seed, torch.bfloat16, 3e-2)


def test_time_buckets_are_half_octaves() -> None:
    waits = torch.cat([torch.arange(-3, 70), 2 ** torch.arange(24), torch.tensor([2**62])])
    assert time_buckets(waits).tolist() == [loops.bucket(int(each)) for each in waits]
    assert int(time_buckets(waits).max()) < TIME_BUCKETS
