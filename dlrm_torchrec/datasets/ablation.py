"""Batches without one feature: in every row, or event, its value looks missing."""

from __future__ import annotations

from dataclasses import replace
from typing import overload

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.datasets.batch import Batch
from dlrm_torchrec.datasets.sequences.batch import SequenceBatch
from dlrm_torchrec.schema import DatasetSpec


@overload
def without(batch: Batch, feature: str, spec: DatasetSpec) -> Batch: ...


@overload
def without(batch: SequenceBatch, feature: str, spec: DatasetSpec) -> SequenceBatch: ...


def without(batch: Batch | SequenceBatch, feature: str, spec: DatasetSpec) -> Batch | SequenceBatch:
    """``batch`` with 0 in every row of a dense feature, or one id 0, of weight 1, in every bag of a sparse one.

    The events of a history stay as many as they are, each with the id 0.

    In prepared data, a missing value becomes the same 0 or id 0. In any data, a value that is the same for all rows
    tells a model nothing. Raises ValueError when ``spec`` has no such feature.
    """
    dense = [each.name for each in spec.dense]
    if feature in dense and isinstance(batch, Batch):
        values = batch.dense_features.clone()
        values[:, dense.index(feature)] = 0
        return replace(batch, dense_features=values)
    ids = batch.sparse_features
    if feature not in ids.keys():  # noqa: SIM118  # a KeyedJaggedTensor is not a dictionary
        raise ValueError(f"feature must be one of the data set: got {feature!r}; name one of {[*dense, *ids.keys()]}")
    key = ids.keys().index(feature)
    if isinstance(batch, SequenceBatch):
        values = ids.values().clone()
        values[ids.offset_per_key()[key] : ids.offset_per_key()[key + 1]] = 0
        same = {"stride": ids.stride(), "length_per_key": ids.length_per_key()}
        return replace(batch, sparse_features=KeyedJaggedTensor(ids.keys(), values, lengths=ids.lengths(), **same))
    pieces = list(ids.values().split(ids.length_per_key()))
    pieces[key] = pieces[key].new_zeros(ids.stride())
    weights = ids.weights_or_none()
    if weights is not None:
        own = list(weights.split(ids.length_per_key()))
        own[key] = weights.new_ones(ids.stride())
        weights = torch.cat(own)
    lengths = ids.lengths().view(len(ids.keys()), -1).clone()
    lengths[key] = 1
    changed = KeyedJaggedTensor(ids.keys(), torch.cat(pieces), weights, lengths=lengths.view(-1))
    return replace(batch, sparse_features=changed)
