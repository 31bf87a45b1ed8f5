"""The exact int64 product against torch's product and against products of smaller numbers.

    python benchmarks/int64_gemm.py              # 1024 x 1024 x 1024, with one thread and with all
    python benchmarks/int64_gemm.py --size 2048 --rounds 5

The contenders take turns in one process, and each result is compared with torch's: torch's product; torch's product of
a group of rows in each thread; 8-bit digits, 36 products on the int8 kernel; ours, which measures once and takes the
faster one of these two; and 22-bit limbs, 6 products in float64. Residues modulo 18 numbers below 2^8 would need 18
int8 products; the last line is the time of only these products. Gops/s counts 2 n^3 operations. The published 10.5
Gops/s are FBGEMM's int64 GEMM on a Xeon Gold 6138, 3.5 times as fast as what existed before.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from dlrm_torchrec.inference.integers.int64_matmul import int64_matmul, matmul_by_digits, matmul_by_rows

_BITS, _TERMS = 22, 1 << 10  # 2 x 2^10 x (2^21)^2 is 2^53: every sum is an integer that float64 holds exactly


def matmul_by_float64(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The product modulo 2^64 by limbs of 22, 22 and 20 bits."""
    product = torch.zeros(a.size(0), b.size(1), dtype=torch.int64)
    for start in range(0, a.size(1), _TERMS):
        left, right = limbs(a[:, start : start + _TERMS]), limbs(b[start : start + _TERMS])
        for s in range(3):
            total = left[0] @ right[s]
            for i in range(1, s + 1):
                total.addmm_(left[i], right[s - i])
            product += total.to(torch.int64) << _BITS * s
    return product


def limbs(x: torch.Tensor) -> list[torch.Tensor]:
    half, found = 1 << (_BITS - 1), []
    for _ in range(2):
        low = ((x + half) & ((1 << _BITS) - 1)) - half
        found.append(low.double())
        x = (x - low) >> _BITS
    return [*found, x.double()]


def residue_products(a: torch.Tensor, b: torch.Tensor) -> None:
    """Only the 18 products of residues, without computing the residues and without combining the result."""
    left, right = a.to(torch.int8), b.to(torch.int8)
    for _ in range(18):
        torch._int_mm(left, right)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=16)
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-(2**63), 2**63 - 1, (args.size, args.size), generator=generator) for _ in range(2))
    contenders: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor | None]] = {
        "torch": torch.matmul,
        "int64_matmul": int64_matmul,
        "rows in threads": lambda a, b: matmul_by_rows(a, b, torch.get_num_threads()),
        "8-bit digits": matmul_by_digits,
        "22-bit limbs in float64": matmul_by_float64,
        "18 residues, products alone": residue_products,
    }
    expected, most = a @ b, torch.get_num_threads()
    print("| threads | product | ms | Gops/s | of torch's time |\n|---|---|---|---|---|")
    for threads in dict.fromkeys((1, most)):
        torch.set_num_threads(threads)
        taken: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(args.rounds + 2):
            for name, product in contenders.items():
                start = time.perf_counter()
                found = product(a, b)
                if number >= 2:
                    taken[name].append(1e3 * (time.perf_counter() - start))
                assert found is None or torch.equal(found, expected)
        base = np.median(taken["torch"])
        for name, values in taken.items():
            ms = np.median(values)
            print(f"| {threads} | {name} | {ms:.1f} | {2e-6 * args.size**3 / ms:.1f} | {ms / base:.2f} |", flush=True)


if __name__ == "__main__":
    main()
