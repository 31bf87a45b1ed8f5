"""Batches for measurements of time: every bag of a feature has the same length, and all ids are equally likely."""

from __future__ import annotations

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.schema import DatasetSpec


def uniform_batch(spec: DatasetSpec, size: int) -> Batch:
    """A batch (B = ``size``) on the CPU, drawn from torch's own generator, whose labels say nothing.

    A bag has as many ids as the pooling factor of its feature, rounded; dense columns are standard normal numbers.
    """
    bags = [(feature.rows, round(feature.pooling_factor)) for feature in spec.sparse]
    features = KeyedJaggedTensor(
        keys=[feature.name for feature in spec.sparse],
        values=torch.cat([torch.randint(rows, (size * length,)) for rows, length in bags]),
        lengths=torch.cat([torch.full((size,), length, dtype=torch.int32) for _, length in bags]),
    )
    dense, labels = torch.randn(size, len(spec.dense)), torch.randint(2, (size,)).float()
    return Batch(dense, features, labels, num_rows=size, global_rows=size)
