"""Batches taken apart again, row by row, for comparisons."""

from collections.abc import Iterable
from typing import NamedTuple

import torch

from dlrm_torchrec.datasets.batch import Batch

Row = tuple[object, tuple[object, ...], tuple[tuple[int, ...], ...]]  # label, dense values, ids of each feature


class Columns(NamedTuple):
    labels: torch.Tensor
    dense: torch.Tensor
    sparse: list[list[list[int]]]  # per feature, per row, the ids


def concatenate(batches: Iterable[Batch]) -> Columns:
    """The real rows of the batches, one batch after the other."""
    batches = list(batches)
    keys = batches[0].sparse_features.keys()
    sparse: list[list[list[int]]] = [[] for _ in keys]
    for batch in batches:
        assert batch.sparse_features.keys() == keys
        for rows, key in zip(sparse, keys, strict=True):
            feature = batch.sparse_features[key]
            assert feature.lengths()[batch.num_rows :].sum() == 0
            values = iter(feature.values().tolist())
            rows += [[next(values) for _ in range(n)] for n in feature.lengths()[: batch.num_rows].tolist()]
            assert next(values, None) is None
    return Columns(
        torch.cat([batch.labels[: batch.num_rows] for batch in batches]),
        torch.cat([batch.dense_features[: batch.num_rows] for batch in batches]),
        sparse,
    )


def rows_of(batches: Iterable[Batch]) -> list[Row]:
    """(label, dense, ids of each feature) of every real row: plain values that compare exactly."""
    columns = concatenate(batches)
    ids = zip(*columns.sparse, strict=True)
    return [
        (label, tuple(dense), tuple(map(tuple, bags)))
        for label, dense, bags in zip(columns.labels.tolist(), columns.dense.tolist(), ids, strict=True)
    ]
