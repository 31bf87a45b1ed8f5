"""The dimension rule against exact integers, a plain sum, and the paper's Table 1 and examples."""

from __future__ import annotations

import math
import runpy
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dlrm_torchrec.embeddings.dimension_rule import empirical_entropy_bits, k_hot_entropy_bits, required_dim

M = 10**6
# n, k, the entropy and the dimensions for 8, 16 and 32 bits that the paper prints
TABLE_1 = [
    (M, 1, 19.9, (4, 2, 1)),
    (10 * M, 1, 23.2, (4, 2, 1)),
    (100 * M, 1, 26.5, (4, 2, 1)),
    (M, 10, 163.0, (24, 12, 6)),
    (10 * M, 10, 196.3, (28, 14, 7)),
    (100 * M, 10, 229.5, (32, 16, 8)),
    (M, 100, 1324.1, (168, 84, 42)),
    (10 * M, 100, 1656.3, (208, 104, 52)),
    (100 * M, 100, 1988.5, (252, 126, 63)),
    (M, 1000, 9958.0, (1248, 624, 312)),
    (10 * M, 1000, 13281.2, (1664, 832, 416)),
    (100 * M, 1000, 16603.3, (2076, 1038, 519)),
]


@pytest.mark.parametrize(("items", "hot", "printed", "dims"), TABLE_1)
def test_table_1(items: int, hot: int, printed: float, dims: tuple[int, int, int]) -> None:
    """Exact values, and how the printed ones differ: short by n·log2(n / (n - k)), cut, and whole 32-bit words."""
    exact = math.comb(items, hot)
    entropy_bits = k_hot_entropy_bits(items, hot)
    assert entropy_bits == pytest.approx(math.log2(exact), rel=1e-13)
    for bits in (8, 16, 32):
        assert required_dim(entropy_bits, bits) == -(-(exact - 1).bit_length() // bits)

    missing = items * math.log2(items / (items - hot)) if hot > 1 else 0.0
    assert printed == math.floor(10 * (entropy_bits - missing)) / 10
    words = required_dim(printed, 32)
    assert dims == (4 * words, 2 * words, words)


def test_worked_examples() -> None:
    """Printed are 24.3, 1756.3 and 3356.3 bits and, as powers of two, 1, 64 and 128 elements of 32 bits."""
    items = 20 * M
    missing = items * math.log2(items / (items - 100))
    entropies = [
        k_hot_entropy_bits(items, 1),
        k_hot_entropy_bits(items, 100),
        k_hot_entropy_bits(items, 100, weight_bits=16),
    ]
    assert [round(bits, 1) for bits in entropies] == [24.3, 1900.6, 3500.6]
    assert [math.floor(10 * (bits - missing)) / 10 for bits in entropies[1:]] == [1756.3, 3356.3]
    dims = [required_dim(bits, 32) for bits in entropies]
    assert dims == [1, 60, 110]
    assert [2 ** math.ceil(math.log2(dim)) for dim in dims] == [1, 64, 128]


@given(st.integers(1, 10**30), st.integers(1, 300))
def test_entropy_of_few_among_many_is_that_of_the_exact_integer(items: int, hot: int) -> None:
    hot = min(hot, items)
    assert k_hot_entropy_bits(items, hot) == pytest.approx(math.log2(math.comb(items, hot)), rel=1e-13)


@given(st.data(), st.integers(1, 4000))
def test_entropy_of_many_among_few_is_that_of_the_exact_integer(data: st.DataObject, items: int) -> None:
    hot = data.draw(st.integers(1, items))
    assert k_hot_entropy_bits(items, hot) == pytest.approx(math.log2(math.comb(items, hot)), rel=1e-13)


@given(st.integers(1, 10**9), st.integers(1, 1000), st.integers(0, 64))
def test_weights_add_their_bits(items: int, hot: int, weight_bits: int) -> None:
    hot = min(hot, items)
    more = k_hot_entropy_bits(items, hot, weight_bits=weight_bits) - k_hot_entropy_bits(items, hot)
    assert more == pytest.approx(weight_bits * hot, rel=1e-9)


@given(st.integers(0, 1000), st.integers(1, 64))
def test_a_whole_number_of_elements_is_not_exceeded(power: int, bits: int) -> None:
    """log2 of 2^p, also where the entropy is computed with rounding errors, needs ceil(p / s) elements."""
    exact = -(-power // bits)
    for noise in (0.0, 3e-15, -3e-15):
        assert required_dim(power * (1 + noise), bits) == exact
    assert required_dim(k_hot_entropy_bits(2**power, 1), bits) == exact
    assert required_dim(power + 1e-6, bits) == power // bits + 1


@given(st.lists(st.integers(0, 10**12), min_size=1).filter(any))
def test_empirical_entropy_is_the_sum_over_outcomes(counts: list[int]) -> None:
    shares = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    expected = -torch.xlogy(shares, shares).sum() / math.log(2)
    assert empirical_entropy_bits(counts) == pytest.approx(float(expected), rel=1e-9, abs=1e-12)


def test_equally_frequent_combinations_have_the_entropy_of_the_formula() -> None:
    assert empirical_entropy_bits([7] * math.comb(12, 3)) == pytest.approx(k_hot_entropy_bits(12, 3), rel=1e-13)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: k_hot_entropy_bits(5, 6), "hot must lie between 1 and items: got 6 of 5 items; lower hot or raise"),
        (lambda: k_hot_entropy_bits(5, 0), "hot must lie between 1 and items: got 0 of 5 items"),
        (lambda: k_hot_entropy_bits(-5, -6), "hot must lie between 1 and items: got -6 of -5 items"),
        (
            lambda: k_hot_entropy_bits(5, 1, weight_bits=-1),
            "weight bits must not be negative: got -1; give 0 for a lookup without",
        ),
        (lambda: empirical_entropy_bits([]), "counts must not be negative, nor all be 0: got 0 counts, the least 0,"),
        (lambda: empirical_entropy_bits([0, 0]), "nor all be 0: got 2 counts, the least 0, sum 0; count how often"),
        (lambda: empirical_entropy_bits([3, -1]), "must not be negative, .*: got 2 counts, the least -1, sum 2; count"),
        (lambda: required_dim(-1.0, 8), "entropy must be finite and not negative: got -1.0 bits; compute it from"),
        (lambda: required_dim(math.nan, 8), "entropy must be finite and not negative: got nan bits"),
        (lambda: required_dim(math.inf, 8), "entropy must be finite and not negative: got inf bits"),
        (lambda: required_dim(10.0, 0), "bits of an element must be at least 1: got 0; give 32 for float32"),
    ],
)
def test_impossible_arguments_are_refused(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=message):
        call()


def test_command_prints_one_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = "dlrm_torchrec.embeddings.dimension_rule"
    options = "--items 1_000_000 20_000_000 --hot 1 100 --bits 16 32 --weight-bits 16"
    monkeypatch.setattr(sys, "argv", [module, *options.split()])
    monkeypatch.delitem(sys.modules, module)  # as in a fresh process
    runpy.run_module(module, run_name="__main__")
    assert capsys.readouterr().out.splitlines() == [
        "     items  hot  weight bits  entropy (bits)  dim at 16 bits  dim at 32 bits",
        " 1,000,000    1           16            35.9               3               2",
        " 1,000,000  100           16         3,068.4             192              96",
        "20,000,000    1           16            40.3               3               2",
        "20,000,000  100           16         3,500.6             219             110",
    ]
