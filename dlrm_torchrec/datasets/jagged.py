"""NumPy columns to one Batch: padding, and bags to a KeyedJaggedTensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.datasets.stream import Share


@dataclass(frozen=True)
class Bags:
    """One sparse feature of n rows: the ids of row i are the next ``lengths[i]`` of ``values``."""

    lengths: NDArray[np.int32]  # (n,)
    values: NDArray[np.int64]  # (sum of lengths,)


@dataclass(frozen=True)
class Rows:
    """n rows of every column, in spec order."""

    labels: NDArray[np.float32]  # (n,)
    dense: NDArray[np.float32]  # (n, D)
    sparse: Sequence[Bags]  # F of n rows each


def to_batch(rows: Rows, keys: Sequence[str], share: Share) -> Batch:
    """A Batch of ``share.padded_rows`` rows: the ``share.num_rows`` given ones, then zeros and empty bags."""
    padded, real = share.padded_rows, share.num_rows
    labels = torch.zeros(padded)
    labels[:real] = torch.from_numpy(rows.labels)
    dense = torch.zeros(padded, rows.dense.shape[1])
    dense[:real] = torch.from_numpy(rows.dense)
    lengths = torch.zeros(len(keys), padded, dtype=torch.int32)
    for row, bags in zip(lengths, rows.sparse, strict=True):
        row[:real] = torch.from_numpy(bags.lengths)
    values = torch.from_numpy(np.concatenate([bags.values for bags in rows.sparse]))
    return Batch(
        dense_features=dense,
        sparse_features=KeyedJaggedTensor(keys=list(keys), values=values, lengths=lengths.view(-1)),
        labels=labels,
        num_rows=real,
        global_rows=share.global_rows,
    )
