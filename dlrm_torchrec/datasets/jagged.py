"""NumPy columns to one Batch: pieces joined, bags to a KeyedJaggedTensor, the end padded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.datasets.bags import Columns
from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.datasets.stream import Share
from dlrm_torchrec.schema import DatasetSpec


def to_batch(spec: DatasetSpec, pieces: Sequence[Columns], share: Share) -> Batch:
    """A Batch of ``share.padded_rows`` rows: those of ``pieces`` in order, then zeros and empty bags."""
    labels = np.zeros(share.padded_rows, dtype=np.float32)
    dense = np.zeros((share.padded_rows, len(spec.dense)), dtype=np.float32)
    lengths = np.zeros((len(spec.sparse), share.padded_rows), dtype=np.int32)
    first = 0
    for piece in pieces:
        rows = slice(first, first + len(piece))
        labels[rows], dense[rows] = piece.labels, piece.dense
        for row, bags in zip(lengths, piece.sparse, strict=True):
            row[rows] = bags.lengths
        first = rows.stop
    assert first == share.num_rows
    values = [piece.sparse[index].values for index in range(len(spec.sparse)) for piece in pieces]
    return Batch(
        dense_features=torch.from_numpy(dense),
        sparse_features=KeyedJaggedTensor(
            keys=[feature.name for feature in spec.sparse],
            values=torch.from_numpy(np.concatenate([np.empty(0, dtype=np.int64), *values], dtype=np.int64)),
            lengths=torch.from_numpy(lengths).view(-1),
        ),
        labels=torch.from_numpy(labels),
        num_rows=share.num_rows,
        global_rows=share.global_rows,
    )
