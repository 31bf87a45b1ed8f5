"""Products of int64 matrices modulo 2^64, faster than torch's own on a CPU, and on a GPU, where torch has none.

On a CPU with 64-bit vector multiplies no splitting into smaller numbers pays (LOG.md): what does is to multiply less,
by Winograd's form of Strassen's algorithm, which is exact in any ring, and to give every thread some of the rows.

GPUs multiply 8-bit integers fast. With the signed digits of two integers in base 256, x = sum x_i 256^i modulo 2^64,
a product is

    A C = sum over s of 256^s (A_0 C_s + A_1 C_(s-1) + ... + A_s C_0)    modulo 2^64

where the powers from 2^64 on vanish: 36 products of digits. Those of one s are one product of longer matrices, the
digits of A beside each other, those of C below each other in reverse.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

_LEAST = 256  # rows and columns that are worth 7 products of half the size and 15 sums; measured
_TERMS = 1 << 13  # 8 digits x 2^13 x (2^7)^2 stays below 2^31
_SIGNS = -0x7F7F7F7F7F7F7F80  # 0x8080808080808080, the top bit of every byte


def int64_matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``a`` (m, k) times ``b`` (k, n), int64, modulo 2^64 as int64 arithmetic wraps around: (m, n) int64.

    Raises ValueError when shapes or types do not fit.
    """
    if a.dtype != torch.int64 or b.dtype != torch.int64:
        raise ValueError(f"matrices must be int64: got {a.dtype} and {b.dtype}; convert them")
    if a.dim() != 2 or b.dim() != 2 or a.size(1) != b.size(0):
        raise ValueError(f"matrices must be (m, k) and (k, n): got {tuple(a.shape)} and {tuple(b.shape)}; reshape them")
    return matmul_by_digits(a, b) if a.is_cuda else matmul_by_winograd(a, b, torch.get_num_threads())


def matmul_by_winograd(a: torch.Tensor, b: torch.Tensor, threads: int = 1) -> torch.Tensor:
    """``int64_matmul`` by 7 products for 8, again and again, of as many groups of rows as there are ``threads``."""
    m, n = a.size(0), b.size(1)
    halvings = _halvings(-(-m // threads), a.size(1), n)
    a, b = _padded(a, threads << halvings, 1 << halvings), _padded(b, 1 << halvings, 1 << halvings)
    product = a.new_empty(a.size(0), b.size(1))
    rows = len(a) // threads

    def multiply(group: int) -> None:
        mine = slice(group * rows, (group + 1) * rows)
        scratch = [_scratch(rows >> depth, a.size(1) >> depth, b.size(1) >> depth) for depth in range(halvings)]
        _winograd(a[mine], b, product[mine], scratch)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(multiply, range(threads)))
    return product[:m, :n]


def _halvings(*sizes: int) -> int:
    """How often matrices of these sizes are to be halved."""
    return max((min(sizes) // _LEAST).bit_length() - 1, 0)


def _scratch(m: int, k: int, n: int) -> tuple[torch.Tensor, ...]:
    """Room for a quarter of the left, the right and the resulting matrix."""
    return tuple(torch.empty(r // 2, c // 2, dtype=torch.int64) for r, c in ((m, k), (k, n), (m, n)))


def _winograd(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, scratch: list[tuple[torch.Tensor, ...]]) -> None:
    """``a`` times ``b`` into ``c``: Winograd's 7 products and 15 sums, once for every entry of ``scratch``.

    The order is that of Douglas et al. 1994 (GEMMW), which keeps no more than one sum of each side at a time.
    """
    if not scratch:
        torch.mm(a, b, out=c)
        return
    (s, t, p), *deeper = scratch
    (a11, a12), (a21, a22) = (half.chunk(2, 1) for half in a.chunk(2))
    (b11, b12), (b21, b22) = (half.chunk(2, 1) for half in b.chunk(2))
    (c11, c12), (c21, c22) = (half.chunk(2, 1) for half in c.chunk(2))
    _winograd(torch.sub(a11, a21, out=s), torch.sub(b22, b12, out=t), c21, deeper)
    _winograd(torch.add(a21, a22, out=s), torch.sub(b12, b11, out=t), c22, deeper)
    _winograd(s.sub_(a11), torch.sub(b22, t, out=t), c12, deeper)
    _winograd(torch.sub(a12, s, out=s), b22, c11, deeper)
    _winograd(a11, b11, p, deeper)
    c12.add_(p)
    c21.add_(c12)
    c12.add_(c22).add_(c11)
    c22.add_(c21)
    _winograd(a22, t.sub_(b21), c11, deeper)
    c21.sub_(c11)
    _winograd(a12, b21, c11, deeper)
    c11.add_(p)


def matmul_by_digits(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``int64_matmul`` by 8-bit digits, whose products are summed in 32 bits.

    On a CPU it needs VNNI: older x86 processors add pairs of 8-bit products in 16 bits, which saturate.
    """
    (m, k), n = a.shape, b.size(1)
    product = torch.zeros(m, n, dtype=torch.int64, device=a.device)
    for start in range(0, k, _TERMS):
        # CUDA's 8-bit kernels take more than 16 rows, and columns by eights
        left = _padded(a[:, start : start + _TERMS], 32, 8)
        right = _padded(b[start : start + _TERMS], 8, 8)
        terms = left.size(1)
        beside = _digits(left).permute(0, 2, 1).reshape(len(left), 8 * terms)
        below = _digits(right).permute(2, 0, 1).flip(0).reshape(8 * terms, -1)
        for s in range(8):
            total = torch._int_mm(beside[:, : (s + 1) * terms], below[(7 - s) * terms :])
            product += total[:m, :n].to(torch.int64) << 8 * s
    return product


def _digits(x: torch.Tensor) -> torch.Tensor:
    """Eight digits -128 .. 127 of base 256 for every element of ``x`` (rows, columns): (rows, columns, 8), int8.

    Adding 128 to every digit gives the bytes of an integer, and the top bit of a byte is what tells it from its digit.
    """
    return ((x + _SIGNS) ^ _SIGNS).view(torch.int8).view(*x.shape, 8)


def _padded(x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """``x`` with zeros up to multiples of ``rows`` and ``columns``."""
    missing = (0, -x.size(1) % columns, 0, -x.size(0) % rows)
    return torch.nn.functional.pad(x, missing) if any(missing) else x
