"""Makes one Batch of blocks of rows: joins the pieces, puts ids into a KeyedJaggedTensor, and pads the end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.datasets.block import Block, join_ids
from dlrm_torchrec.datasets.stream import Share
from dlrm_torchrec.schema import DatasetSpec


def to_batch(spec: DatasetSpec, pieces: Sequence[Block], share: Share, *, pin_memory: bool = False) -> Batch:
    """A Batch of ``share.padded_rows`` rows: the rows of ``pieces`` in order, then zeros and empty bags.

    With ``pin_memory``, all of it lies in page-locked memory, from which a GPU can copy while the caller continues.
    """
    rows, columns = share.padded_rows, len(spec.labels)
    labels = torch.zeros((rows, columns) if columns > 1 else rows, pin_memory=pin_memory)
    weights = torch.zeros(rows, pin_memory=pin_memory) if spec.weight else None
    dense = torch.zeros(rows, len(spec.dense), pin_memory=pin_memory)
    lengths = torch.zeros(len(spec.sparse), share.padded_rows, dtype=torch.int32, pin_memory=pin_memory)
    to_labels, to_dense, to_lengths = labels.numpy(), dense.numpy(), lengths.numpy()
    first = 0
    for piece in pieces:
        last = first + len(piece)
        to_labels[first:last], to_dense[first:last] = piece.labels, piece.dense
        to_lengths[:, first:last] = piece.lengths
        if weights is not None:
            weights.numpy()[first:last] = piece.weights
        first = last
    assert first == share.num_rows
    length_per_key = to_lengths.sum(axis=1).tolist()
    values = torch.empty(sum(length_per_key), dtype=torch.int64, pin_memory=pin_memory)
    id_weights = torch.empty(len(values), pin_memory=pin_memory) if spec.weighted_ids else None
    join_ids(pieces, length_per_key, values.numpy(), None if id_weights is None else id_weights.numpy())
    return Batch(
        dense_features=dense,
        sparse_features=KeyedJaggedTensor(
            keys=[feature.name for feature in spec.sparse],
            values=values,
            weights=id_weights,
            lengths=lengths.view(-1),
            stride=share.padded_rows,
            length_per_key=length_per_key,  # counted here, so that TorchRec need not read it from a device
        ),
        labels=labels,
        num_rows=share.num_rows,
        global_rows=share.global_rows,
        weights=weights,
    )
