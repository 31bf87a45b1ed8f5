"""The machine itself: FBGEMM's kernels run, and memory and products are as fast as its data sheet lets expect."""

from __future__ import annotations

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice, SplitTableBatchedEmbeddingBagsCodegen

from dlrm_torchrec.sharding.cluster.machines import A100_40, A100_80, B200, H100, H200, L40S, Machine

from ..proof import Proof

GPUS = {"H200": H200, "H100": H100, "A100-SXM4-80GB": A100_80, "A100-SXM4-40GB": A100_40, "B200": B200, "L40S": L40S}


def machine_of(device: torch.device) -> Machine | None:
    """The entry of the machine table for the GPU at hand, if it has one."""
    name = torch.cuda.get_device_name(device)
    return next((machine for text, machine in GPUS.items() if text in name), None)


def prove(proof: Proof) -> None:
    with proof.guarded("FBGEMM looks up rows and updates them"):
        place = (EmbeddingLocation.DEVICE, ComputeDevice.CUDA)
        place = place if proof.cuda else (EmbeddingLocation.HOST, ComputeDevice.CPU)
        tables = SplitTableBatchedEmbeddingBagsCodegen(
            [(100, 16, *place)], optimizer=EmbOptimType.EXACT_SGD, learning_rate=0.5
        )
        (table,) = tables.split_embedding_weights()
        table.copy_(torch.rand(100, 16))
        before = table.cpu().clone()
        ids, offsets = torch.arange(100, device=proof.device), torch.arange(0, 101, 2, device=proof.device)
        found = tables(ids, offsets)
        found.sum().backward()
        wrong = (found.detach().cpu() - before.view(50, 2, 16).sum(1)).abs().max()
        missed = (table.cpu() - (before - 0.5)).abs().max()
        proof.correct("FBGEMM looks up rows and updates them", float(max(wrong, missed)), at_most=1e-6)
    with proof.guarded("copy in device memory", "speed"):
        machine = machine_of(proof.device) if proof.cuda else None
        numbers = torch.rand(1 << (16 if proof.toy else 29), device=proof.device)
        milliseconds = proof.milliseconds(torch.empty_like(numbers).copy_, numbers, times=10)
        gigabytes = 2 * numbers.nbytes / milliseconds / 1e6
        least = 0.75 * machine.hbm_bandwidth / 1e9 if machine else None
        proof.measured("copy in device memory, read and written", gigabytes, unit="GB/s", at_least=least)
    size = 128 if proof.toy else 8192
    for dtype in (torch.bfloat16, torch.float32):
        name = f"matrix product of {size} x {size}, {str(dtype).removeprefix('torch.')}"
        with proof.guarded(name, "speed"):
            a, b = (torch.randn(size, size, device=proof.device, dtype=dtype) for _ in range(2))
            milliseconds = proof.milliseconds(torch.matmul, a, b, times=5)
            proof.measured(name, 2 * size**3 / milliseconds / 1e9, unit="TFLOP/s")
