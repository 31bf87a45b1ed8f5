"""Int8 layers, against integer arithmetic and the error that their scales allow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from dlrm_torchrec.inference.mlps.linear import ColumnScales, DynamicLinear, StaticLinear, quantize_weight

LOW, HIGH = -3.0, 12.9375  # 255 steps of 1/16, 0 at level 48
STEP, ZERO = 1 / 16, 48


def layer(outputs: int = 33, inputs: int = 70, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(outputs, inputs, generator=generator), torch.randn(outputs, generator=generator)


def features(rows: int, columns: int = 70) -> torch.Tensor:
    return 3 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))


@pytest.mark.parametrize("bits", [4, 7])
def test_weights_are_within_half_a_step(bits: int) -> None:
    weight, _ = layer()
    weight[3] = 0
    levels, scales = quantize_weight(weight, bits)
    assert levels.dtype == torch.int8
    assert levels.abs().amax(dim=1).tolist() == [0 if row == 3 else 2 ** (bits - 1) - 1 for row in range(33)]
    error = (levels * scales[:, None].double() - weight).abs()
    assert (error <= scales[:, None] * 0.5001).all()
    assert not error[3].any()


@pytest.mark.parametrize("rows", [0, 1, 40])
@pytest.mark.parametrize("relu", [False, True])
def test_static_layer_is_integer_arithmetic(rows: int, relu: bool) -> None:
    weight, bias = layer()
    levels, scales = quantize_weight(weight, 7)
    given = features(rows)
    quantized = (given.double() / STEP).round().long().add(ZERO).clamp(0, 255) - ZERO
    expected = (quantized @ levels.long().T) * (STEP * scales.double()) + bias
    found = StaticLinear(weight, bias, relu=relu, low=LOW, high=HIGH)(given)
    torch.testing.assert_close(found.double(), expected.relu() if relu else expected, rtol=1e-6, atol=1e-5)


def test_what_is_outside_the_range_saturates() -> None:
    static, given = StaticLinear(*layer(), relu=False, low=LOW, high=HIGH), features(5) * 1000
    assert torch.equal(static(given), static(given.clamp(LOW, HIGH)))


def test_a_range_on_one_side_of_zero_has_a_level_for_zero() -> None:
    weight, _ = layer()
    for low, high in ((2.0, 3.0), (-3.0, -2.0), (0.0, 0.0)):
        assert not StaticLinear(weight, None, relu=False, low=low, high=high)(torch.zeros(2, 70)).any()


@pytest.mark.parametrize("rows", [0, 1, 40])
@pytest.mark.parametrize("relu", [False, True])
def test_dynamic_layer_errs_no_more_than_its_scales_allow(rows: int, relu: bool) -> None:
    weight, bias = layer()
    _, scales = quantize_weight(weight, 7)
    given = features(rows).double()
    step = (given.max().clamp_min(0) - given.min().clamp_max(0)) / 255 if rows else torch.zeros(())
    # half a step for rounding an input, half a step for rounding the level of zero
    half_weight = scales.double() / 2
    bound = step * weight.double().abs().sum(1) + (given.abs() + step).sum(1, keepdim=True) * half_weight
    exact = given @ weight.double().T + bias
    found = DynamicLinear(weight, bias, relu=relu)(given.float()).double()
    assert found.shape == (rows, 33)
    assert ((found - (exact.relu() if relu else exact)).abs() <= bound + 1e-4).all()


@pytest.mark.parametrize(
    "int8", [DynamicLinear(*layer(), relu=True), StaticLinear(*layer(), relu=True, low=LOW, high=HIGH)]
)
def test_layout_of_the_input_does_not_matter(int8: nn.Module) -> None:
    given = features(6)
    assert torch.equal(int8(given.T.contiguous().T), int8(given))
    assert torch.equal(int8(torch.cat((given, given), dim=1)[:, :70]), int8(given))


def test_other_rows_do_not_change_a_static_layer() -> None:
    static, given = StaticLinear(*layer(), relu=False, low=LOW, high=HIGH), features(40)
    assert torch.equal(torch.cat([static(row[None]) for row in given]), static(given))


def test_scripted_layers_give_the_same_bits_without_this_library_and_without_vnni(tmp_path: Path) -> None:
    chain = nn.Sequential(
        ColumnScales(torch.rand(70) + 0.5),
        StaticLinear(*layer(64), relu=True, low=LOW, high=HIGH),
        DynamicLinear(*layer(33, 64), relu=False),
    )
    # the largest of all products; 8-bit weights would saturate on AVX2
    largest = StaticLinear(torch.ones(9, 70), None, relu=False, low=0, high=1)
    given = torch.cat((features(40), torch.ones(2, 70)))
    torch.jit.script(chain).save(tmp_path / "chain.pt")
    torch.jit.script(largest).save(tmp_path / "largest.pt")
    torch.save(given, tmp_path / "given.pt")
    script = """if True:
        import torch
        given = torch.load("given.pt")
        torch.save([torch.jit.load(name)(given) for name in ("chain.pt", "largest.pt")], "found.pt")
    """
    environment = os.environ | {"FBGEMM_ENABLE_INSTRUCTIONS": "AVX2"}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)
    found = torch.load(tmp_path / "found.pt")
    assert torch.equal(found[0], chain(given))
    assert torch.equal(found[1], largest(given))
    torch.testing.assert_close(found[1][-1], torch.full((9,), 70.0))


def test_weights_that_are_not_finite_are_refused() -> None:
    weight, bias = layer()
    weight[1, 2] = torch.nan
    with pytest.raises(ValueError, match=r"weights must be finite: got 1 other values in a layer of shape \(33, 70\)"):
        DynamicLinear(weight, bias, relu=False)


def test_the_engine_of_the_process_stays() -> None:
    engine = torch.backends.quantized.engine
    DynamicLinear(*layer(), relu=False)
    assert torch.backends.quantized.engine == engine
