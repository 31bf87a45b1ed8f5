"""Sequences whose next items are to be told, and the items that these are told from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.datasets.random import counter
from dlrm_torchrec.datasets.sequences.batch import SequenceBatch
from dlrm_torchrec.datasets.sequences.log import Ints, history_of
from dlrm_torchrec.datasets.sequences.samples import Samples
from dlrm_torchrec.datasets.sequences.stream import SequenceStream
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.schema import DatasetSpec, SparseFeature

_FIRST = {"vocab": 2, "hash": 1, "bucket": 1}  # id of an item, by encoding; those before it mean missing and unseen


def drawn_name(item: str) -> str:
    """The feature of the items that a next ``item`` is told from."""
    return f"{item} drawn"


def next_item_spec(spec: DatasetSpec) -> DatasetSpec:
    """The spec of a model that reads the items of events and nothing else.

    Its second feature is looked up in the table of the first. A spec that has it already stays as it is.
    """
    history = history_of(spec)
    item = next(feature for feature in spec.sparse if feature.name == history.item)
    drawn = replace(item, name=drawn_name(item.name), column=item.raw, table=item.table_name, pooling_factor=1.0)
    if drawn.name in {feature.name for feature in spec.sparse}:
        return spec
    return replace(spec, sparse=(item, drawn), history=replace(history, events=(item.name,), crosses=(), user=""))


class NextItemStream(SequenceStream):
    """The samples of one split, whose rows are the items to be told, and in every batch items to tell them from.

    In training, every event of a sample but the first is told, from some drawn items that are the same for the whole
    global batch. Otherwise, only the candidate is told, from all items. The labels of rows are 1.
    """

    def __init__(
        self, spec: DatasetSpec, samples: Samples, ranks: Ranks, *, training: bool, draws: int, **options: Any
    ) -> None:
        """A stream of the samples of one candidate each.

        Args:
            spec: that of ``next_item_spec``
            samples: of the split
            ranks: the global batch and this rank's part of it
            training: whether every event is told
            draws: items that are drawn for a batch in training; 0 means all
            options: those of ``SequenceStream``
        """
        item, drawn = spec.sparse
        super().__init__(replace(spec, sparse=(item,)), samples, ranks, **options)
        self.rows = samples.tokens() - 1 if training else np.ones(len(samples), np.int64)
        self._training, self._draws = training, draws
        self._drawn, self._seed = drawn, options.get("seed", 0)

    def completed(self, batch: SequenceBatch, step: int) -> SequenceBatch:
        rows = len(batch.times) - int((batch.lengths > 0).sum()) if self._training else batch.num_rows
        features = with_feature(batch.sparse_features, self._drawn.name, torch.from_numpy(self._items(step)))
        return replace(batch, sparse_features=features, num_rows=rows, labels=torch.ones(rows))

    def _items(self, step: int) -> Ints:
        """The items that those of this step are told from."""
        first, end = items_of(self._drawn)
        if not self._training or not self._draws:
            return np.arange(first, end)
        words = counter.words(counter.derived_key(self._seed, 5, step), np.arange(self._draws))
        items: Ints = first + (counter.uniforms(words) * (end - first)).astype(np.int64)
        return items


def items_of(feature: SparseFeature) -> tuple[int, int]:
    """The first id of an item, and the one after the last."""
    return _FIRST.get(feature.encoding, 0), feature.rows


def with_feature(features: KeyedJaggedTensor, name: str, ids: torch.Tensor) -> KeyedJaggedTensor:
    """``features`` and one more, whose ids are all in the first bag."""
    lengths = features.lengths().new_zeros(features.stride())
    lengths[0] = len(ids)
    return KeyedJaggedTensor(
        keys=[*features.keys(), name],
        values=torch.cat([features.values(), ids]),
        lengths=torch.cat([features.lengths(), lengths]),
        stride=features.stride(),
        length_per_key=[*features.length_per_key(), len(ids)],
    )
