"""The exact int64 product on the device: equal to the CPU's, and its time."""

from __future__ import annotations

import torch

from dlrm_torchrec.inference.integers.int64_matmul import int64_matmul

from ..proof import Proof

SHAPES = [(1, 1, 1), (33, 70, 9), (5, 9000, 2), (256, 1024, 512), (17, 8, 24)]


def prove(proof: Proof) -> None:
    draw = torch.Generator().manual_seed(0)

    def matrices(m: int, k: int, n: int) -> list[torch.Tensor]:
        return [torch.randint(-(2**63), 2**63 - 1, size, generator=draw) for size in ((m, k), (k, n))]

    for shape in SHAPES:
        name = f"int64 product, {shape}"
        with proof.guarded(name):
            a, b = matrices(*shape)
            found = int64_matmul(a.to(proof.device), b.to(proof.device)).cpu()
            proof.correct(name, int((found != a @ b).sum()), unit="wrong numbers")
    for size in (64,) if proof.toy else (1024, 4096):
        name = f"int64 product of {size} x {size}"
        with proof.guarded(name, "speed"):
            a, b = (each.to(proof.device) for each in matrices(size, size, size))
            milliseconds = proof.milliseconds(int64_matmul, a, b, times=5)
            proof.measured(name, 2e-6 * size**3 / milliseconds, unit="Gop/s", note=f"{milliseconds:.2f} ms")
