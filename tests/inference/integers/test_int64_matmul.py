"""Products of int64 matrices against Python's integers and torch's own, slow product."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_torchrec.inference.integers import int64_matmul as module
from dlrm_torchrec.inference.integers.int64_matmul import int64_matmul, matmul_by_digits, matmul_by_rows


def in_threads(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return matmul_by_rows(a, b, threads=3)


def products_of_8_bits_are_exact() -> bool:
    """Whether this processor, or what it is told to be, has VNNI: older ones add pairs of products in 16 bits."""
    digits = torch.randint(-128, 128, (32, 64), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    return torch.equal(torch._int_mm(digits, digits.T.contiguous()), digits.int() @ digits.int().T)


Way = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
WAYS: list[Way] = [int64_matmul, in_threads]
if products_of_8_bits_are_exact():  # tests/gpu runs them on a GPU
    WAYS.append(matmul_by_digits)
LEAST, MOST = -(2**63), 2**63 - 1
EDGES = [
    LEAST,
    LEAST + 1,
    MOST,
    MOST - 1,
    -1,
    0,
    1,
    127,
    128,
    -128,
    -129,
    2**31,
    -(2**31) - 1,
    2**56 - 1,
]


def wrapped(a: list[list[int]], b: list[list[int]]) -> list[list[int]]:
    """The product of Python's integers, wrapped around to int64."""
    columns = list(zip(*b, strict=True))
    exact = [[sum(x * y for x, y in zip(row, column, strict=True)) for column in columns] for row in a]
    return [[(value + 2**63) % 2**64 - 2**63 for value in row] for row in exact]


@st.composite
def matrices(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]]]:
    m, k, n = (draw(st.integers(1, 5)) for _ in range(3))
    value = st.one_of(st.sampled_from(EDGES), st.integers(LEAST, MOST))
    row = [st.lists(st.lists(value, min_size=c, max_size=c), min_size=r, max_size=r) for r, c in ((m, k), (k, n))]
    return draw(row[0]), draw(row[1])


@pytest.mark.parametrize("way", WAYS)
@settings(deadline=None, max_examples=60)
@given(pair=matrices())
def test_it_is_the_integer_product_modulo_2_to_the_64(way: Way, pair: tuple[list[list[int]], list[list[int]]]) -> None:
    a, b = pair
    assert way(torch.tensor(a), torch.tensor(b)).tolist() == wrapped(a, b)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(33, 70, 9), (1, 9000, 3), (64, 1024, 64), (5, 1025, 2), (0, 3, 2), (2, 0, 3)])
def test_it_equals_torchs_own_on_random_matrices(way: Way, shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    a, b = (torch.randint(LEAST, MOST, size, generator=torch.Generator().manual_seed(m)) for size in ((m, k), (k, n)))
    assert torch.equal(way(a, b), a @ b)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("value", [LEAST, MOST, -0x8080808080808080 % 2**64 - 2**63])
def test_the_largest_sums_are_exact(way: Way, value: int) -> None:
    terms = module._TERMS + 1
    a, b = torch.full((2, terms), value), torch.full((terms, 2), value)
    assert way(a, b).tolist() == wrapped([[value] * terms] * 2, [[value] * 2] * terms)


def test_transposed_and_sliced_matrices() -> None:
    a = torch.randint(LEAST, MOST, (40, 30))
    for way in WAYS:
        assert torch.equal(way(a.t()[:, ::2], a[::2, 3:20]), a.t()[:, ::2] @ a[::2, 3:20])


@pytest.mark.parametrize("shape", [(1, 1, 1), (33, 70, 9), (32, 64, 16), (5, module._TERMS + 40, 2)])
def test_digits_are_multiplied_as_cublas_wants_them(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int]
) -> None:
    """What ``_int_mm`` asks for on CUDA, and cuBLAS of CUDA 13: the right operand column after column."""

    def checked(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        assert left.dtype == right.dtype == torch.int8
        assert left.size(0) > 16
        assert left.size(1) % 8 == right.size(1) % 8 == 0
        assert left.stride(1) == right.stride(0) == 1
        for place in (left.stride(0), right.stride(1), left.storage_offset(), right.storage_offset()):
            assert place % 16 == 0
        return left.int() @ right.int()

    monkeypatch.setattr(torch, "_int_mm", checked)
    m, k, n = shape
    a, b = (torch.randint(LEAST, MOST, size) for size in ((m, k), (k, n)))
    for left, right in ((a, b), (a.t().contiguous().t(), b.t().contiguous().t())):
        assert torch.equal(matmul_by_digits(left, right), a @ b)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.ones(2, 3), torch.ones(3, 2, dtype=torch.int64), "matrices must be int64: got torch.float32 and"),
        (torch.ones(2, 3).long(), torch.ones(2, 3).long(), r"matrices must be \(m, k\) and \(k, n\): got \(2, 3\) and"),
        (torch.ones(3).long(), torch.ones(3, 2).long(), r"matrices must be \(m, k\) and \(k, n\): got \(3,\) and"),
    ],
)
def test_bad_matrices_are_refused(a: torch.Tensor, b: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        int64_matmul(a, b)


@pytest.mark.parametrize("digits", [True, False])
def test_a_large_product_is_the_same_by_either_way(monkeypatch: pytest.MonkeyPatch, *, digits: bool) -> None:
    asked: list[int] = []

    def faster(threads: int) -> bool:
        asked.append(threads)
        return digits

    monkeypatch.setattr(module, "digits_are_faster", faster)
    if digits and not products_of_8_bits_are_exact():
        monkeypatch.setattr(module, "matmul_by_digits", torch.matmul)
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.randint(LEAST, MOST, (800, 800), generator=generator) for _ in range(2))
    assert torch.equal(int64_matmul(a, b), a @ b)
    assert torch.equal(int64_matmul(a[:5], b), a[:5] @ b)  # too small for the choice to matter
    assert asked == [torch.get_num_threads()]


def slow_rows(a: torch.Tensor, b: torch.Tensor, _threads: int) -> torch.Tensor:
    time.sleep(0.05)
    return a @ b


def test_digits_that_saturate_are_never_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    module.digits_are_faster.cache_clear()

    def saturating(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        product = a @ b
        product[0, 0] += 1
        return product

    monkeypatch.setattr(module, "matmul_by_digits", saturating)
    assert not module.digits_are_faster(1)
    module.digits_are_faster.cache_clear()
    monkeypatch.setattr(module, "matmul_by_digits", torch.matmul)
    monkeypatch.setattr(module, "matmul_by_rows", slow_rows)
    assert module.digits_are_faster(1)
    module.digits_are_faster.cache_clear()
