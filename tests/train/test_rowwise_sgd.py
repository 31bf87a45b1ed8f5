"""FBGEMM's row-wise Adagrad kernel, set to be SGD, against SGD in float64."""

from __future__ import annotations

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)

from dlrm_torchrec.train.rowwise_sgd import rowwise_sgd


def test_is_sgd_also_where_gradients_are_large_and_ids_repeat() -> None:
    rows, dim, lr = 50, 16, 0.1
    kind, arguments = rowwise_sgd(lr)
    assert kind.__name__ == "RowWiseAdagrad"
    fused = SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, dim, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=arguments["lr"],
        eps=arguments["eps"],
    )
    torch.manual_seed(0)
    start = torch.randn(rows, dim)
    (weight,) = fused.split_embedding_weights()
    weight.copy_(start)
    reference = start.double().requires_grad_()
    scales = [1e-6, 1.0, 1e6, 1e-3]
    moved = torch.zeros(rows, dim, dtype=torch.float64)
    for scale in scales:
        ids, offsets = torch.randint(rows, (120,)), torch.arange(0, 121, 6)
        gradient = torch.randn(20, dim) * scale
        fused(ids, offsets).backward(gradient)
        pooled = torch.nn.functional.embedding_bag(ids, reference, offsets[:-1], mode="sum")
        (step,) = torch.autograd.grad(pooled, reference, gradient.double(), retain_graph=True)
        moved += lr * torch.autograd.grad(pooled, reference, gradient.double().abs())[0]
        reference = (reference.detach() - lr * step).requires_grad_()
    error = (weight.double() - reference).abs()
    # float32 rounds each sum of a row's gradients (at most some ten) and each update to 2^-24 of the sizes involved
    assert (error <= 2.0**-20 * (start.double().abs() + moved)).all()
    assert moved.max() > 1e5
