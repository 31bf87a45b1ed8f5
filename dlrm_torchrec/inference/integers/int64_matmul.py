"""Products of int64 matrices modulo 2^64: faster than torch's product on a CPU, and on a GPU, where torch has none.

torch's product uses only one core of a CPU, so here every thread multiplies some of the rows. Which is faster on a CPU,
this or the digits below, depends on its instructions (LOG.md), so a product of many numbers measures it once.

GPUs, and some CPUs, multiply 8-bit integers fast. With the signed digits of integers in base 256, x = sum x_i 256^i
modulo 2^64, a product is

    A C = sum over s of 256^s (A_0 C_s + A_1 C_(s-1) + ... + A_s C_0)    modulo 2^64

Powers from 2^64 on vanish, which leaves 36 products of digits. The products for one s are a single product of longer
matrices: the digits of A are placed next to each other, and those of C below each other in reverse order.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

_TERMS = 1 << 13  # 8 digits x 2^13 x (2^7)^2 stays below 2^31
_MEASURED = 768  # rows, terms and columns of the product that is measured
_SIGNS = -0x7F7F7F7F7F7F7F80  # 0x8080808080808080, the top bit of every byte


def int64_matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The product (m, n) int64 of ``a`` (m, k) and ``b`` (k, n), both int64; like int64 arithmetic, it is modulo 2^64.

    Raises ValueError when shapes or types are wrong.
    """
    if a.dtype != torch.int64 or b.dtype != torch.int64:
        raise ValueError(f"matrices must be int64: got {a.dtype} and {b.dtype}; convert them")
    if a.dim() != 2 or b.dim() != 2 or a.size(1) != b.size(0):
        raise ValueError(f"matrices must be (m, k) and (k, n): got {tuple(a.shape)} and {tuple(b.shape)}; reshape them")
    threads, many = torch.get_num_threads(), a.numel() * b.size(1) >= _MEASURED**3
    if a.is_cuda or (many and digits_are_faster(threads)):
        return matmul_by_digits(a, b)
    return matmul_by_rows(a, b, threads)


@cache
def digits_are_faster(threads: int) -> bool:
    """Whether products of 8-bit digits are exact and faster than those of rows on this CPU; it takes some 0.2 s.

    Rows come first: threads that have multiplied digits spin for a while, and take the cores from those of the rows.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-(2**63), 2**63 - 1, (_MEASURED, _MEASURED), generator=generator) for _ in range(2))
    rows = _seconds(lambda: matmul_by_rows(a, b, threads))
    digits = _seconds(lambda: matmul_by_digits(a, b))
    # without VNNI, sums of two products saturate
    return digits < rows and torch.equal(matmul_by_digits(a, b), matmul_by_rows(a, b, threads))


def _seconds(multiply: Callable[[], object]) -> float:
    """The shortest of three."""
    took = []
    for _ in range(3):
        start = time.perf_counter()
        multiply()
        took.append(time.perf_counter() - start)
    return min(took)


def matmul_by_rows(a: torch.Tensor, b: torch.Tensor, threads: int) -> torch.Tensor:
    """``int64_matmul`` with torch's product: each of the ``threads`` multiplies one group of rows."""
    product = a.new_empty(a.size(0), b.size(1))
    with ThreadPoolExecutor(threads) as pool:
        groups = zip(a.chunk(threads), product.chunk(threads), strict=True)
        list(pool.map(lambda group: torch.mm(group[0], b, out=group[1]), groups))
    return product


def matmul_by_digits(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``int64_matmul`` with 8-bit digits; their products are summed in 32 bits.

    A CPU needs VNNI or AMX for this: older x86 processors add pairs of 8-bit products in 16 bits, which saturate.
    """
    (m, k), n = a.shape, b.size(1)
    product = torch.zeros(m, n, dtype=torch.int64, device=a.device)
    for start in range(0, k, _TERMS):
        # CUDA's 8-bit kernels need more than 16 rows, multiples of 8 terms and columns, and operands that begin at
        # multiples of 16 bytes, of which cuBLAS wants the right one column after column (pytorch#169956)
        left = _padded(a[:, start : start + _TERMS], rows=32, columns=16)
        right = _padded(b[start : start + _TERMS].t(), rows=16, columns=16)
        terms = left.size(1)
        beside = _digits(left).permute(0, 2, 1).reshape(len(left), 8 * terms)
        below = _digits(right).permute(0, 2, 1).flip(1).reshape(len(right), 8 * terms)  # a row is a column of b
        for s in range(8):
            total = torch._int_mm(beside[:, : (s + 1) * terms], below[:, (7 - s) * terms :].t())
            product += total[:m, :n].to(torch.int64) << 8 * s
    return product


def _digits(x: torch.Tensor) -> torch.Tensor:
    """The eight base-256 digits, -128 .. 127, of every element of ``x`` (rows, columns): (rows, columns, 8), int8.

    Adding 128 to every digit gives the bytes of an integer; flipping the top bit of such a byte gives the digit.
    """
    return ((x.contiguous() + _SIGNS) ^ _SIGNS).view(torch.int8).view(*x.shape, 8)


def _padded(x: torch.Tensor, *, rows: int, columns: int) -> torch.Tensor:
    """``x`` with zeros up to multiples of ``rows`` and ``columns``."""
    missing = (0, -x.size(1) % columns, 0, -x.size(0) % rows)
    return torch.nn.functional.pad(x, missing) if any(missing) else x
