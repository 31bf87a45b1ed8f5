"""Weights split into a dense part of few bits and sparse outliers."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from dlrm_torchrec.inference.mlps.linear import DynamicLinear, StaticLinear, quantize_weight
from dlrm_torchrec.inference.mlps.outliers import SparseProduct, SplitLinear, split_outliers


def heavy_tailed(outputs: int = 64, inputs: int = 96) -> torch.Tensor:
    """Student's t with 3 degrees of freedom."""
    normal = torch.randn(4, outputs, inputs, generator=torch.Generator().manual_seed(0))
    return normal[0] / normal[1:].square().mean(dim=0).sqrt()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3])
def test_the_parts_are_the_weights(share: float) -> None:
    weight = heavy_tailed()
    dense, outliers = split_outliers(weight, share)
    assert torch.equal(dense + outliers, weight)
    assert not (dense * outliers).any()
    assert int((outliers != 0).sum()) == round(share * weight.numel())
    assert (outliers[outliers != 0].abs() >= dense.abs().max()).all()


@pytest.mark.parametrize("bits", [4, 7])
def test_weights_come_back_within_half_a_step_and_outliers_exactly(bits: int) -> None:
    weight = heavy_tailed()
    dense, outliers = split_outliers(weight, 0.02)
    levels, scales = quantize_weight(dense, bits)
    error = (levels * scales[:, None] + outliers - weight).abs()
    assert (error <= scales[:, None] * 0.5001).all()
    assert not error[outliers != 0].any()


@pytest.mark.parametrize("rows", [0, 1, 7])
@pytest.mark.parametrize("share", [0.0, 0.01, 1.0])
def test_sparse_product_is_the_dense_one(rows: int, share: float) -> None:
    _, outliers = split_outliers(heavy_tailed(), share)
    given = torch.randn(96, rows).T
    found = SparseProduct(outliers)(given)
    torch.testing.assert_close(found.double(), given.double() @ outliers.double().T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("relu", [False, True])
def test_the_dense_part_errs_by_its_own_step_and_the_outliers_by_nothing(relu: bool) -> None:
    weight, bias = heavy_tailed(), torch.randn(64)
    dense, outliers = split_outliers(weight, 0.02)
    _, scales = quantize_weight(dense, 5)
    given = torch.randint(-128, 128, (50, 96)).float()  # levels of the input's range: only weights are rounded
    split = SplitLinear(StaticLinear(dense, bias, relu=False, low=-128, high=127, bits=5), outliers, relu=relu)
    exact = given.double() @ weight.double().T + bias
    bound = given.abs().sum(dim=1, keepdim=True) * scales / 2
    assert ((split(given) - (exact.relu() if relu else exact)).abs() <= bound * 1.001 + 1e-2).all()


@pytest.mark.parametrize("bits", [4, 7])
def test_outliers_halve_the_error_of_heavy_tailed_weights(bits: int) -> None:
    weight = heavy_tailed(inputs=512)
    given = torch.randint(-128, 128, (500, 512)).float()
    dense, outliers = split_outliers(weight, 0.01)
    exact = given.double() @ weight.double().T
    plain = StaticLinear(weight, None, relu=False, low=-128, high=127, bits=bits)(given) - exact
    few_bits = StaticLinear(dense, None, relu=False, low=-128, high=127, bits=bits)
    split = SplitLinear(few_bits, outliers, relu=False)(given) - exact
    assert split.norm() < plain.norm() / 2


def test_scripted_split_layer_is_bit_equal_after_loading() -> None:
    dense, outliers = split_outliers(heavy_tailed(), 0.01)
    model = nn.Sequential(SplitLinear(DynamicLinear(dense, torch.randn(64), relu=False), outliers, relu=True))
    stream, given = io.BytesIO(), torch.randn(5, 96)
    torch.jit.save(torch.jit.script(model), stream)
    stream.seek(0)
    assert torch.equal(torch.jit.load(stream)(given), model(given))
