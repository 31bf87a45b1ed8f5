"""Turns raw rows into prepared rows, with the columns that a training stream reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dlrm_torchrec.preparation.readers.rows import Rows
from dlrm_torchrec.preparation.vocabularies.hashing import hash_categories
from dlrm_torchrec.preparation.vocabularies.vocabulary import MISSING, Vocabulary
from dlrm_torchrec.raw_values import buckets, scaled
from dlrm_torchrec.schema import DatasetSpec, SparseFeature


def prepared_schema(spec: DatasetSpec) -> pa.Schema:
    """float32 labels, weights and dense columns, int32 ids (int64 above 2^31 rows) or lists of them; never null."""
    numbers = [*(label.name for label in spec.labels), *([spec.weight] if spec.weight else [])]
    fields = [(name, pa.float32()) for name in [*numbers, *(feature.name for feature in spec.dense)]]
    fields += [(f.name, _lists_of(_id_type(f)) if f.multi_hot else _id_type(f)) for f in spec.sparse]
    fields += [(feature.weights_name, _lists_of(pa.float32())) for feature in spec.sparse if feature.weights]
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields])


def encode(rows: Rows, spec: DatasetSpec, vocabularies: Mapping[str, Vocabulary]) -> pa.Table:
    """The rows as a table of ``prepared_schema``; ``vocabularies`` holds one per table of ``vocab`` features."""
    columns: list[Any] = [pa.array(rows.label), *map(pa.array, rows.more_labels)]
    columns += [] if rows.weight is None else [pa.array(rows.weight)]
    columns += [pa.array(scaled(rows.dense[:, i], vars(feature))) for i, feature in enumerate(spec.dense)]
    for feature, raw in zip(spec.sparse, rows.sparse, strict=True):
        columns.append(_sparse(raw, feature, vocabularies.get(feature.table_name)))
    columns += [_lists(raw, raw.flatten()) for raw in rows.id_weights]
    return pa.Table.from_arrays(columns, schema=prepared_schema(spec))


def _sparse(raw: Any, feature: SparseFeature, vocabulary: Vocabulary | None) -> Any:
    flat = raw.flatten() if feature.multi_hot else raw
    ids = pa.array(_ids(flat, feature, vocabulary).astype(_id_type(feature).to_pandas_dtype(), copy=False))
    return _lists(raw, ids) if feature.multi_hot else ids


def _lists(raw: Any, flat: Any) -> Any:
    """Lists of the flat values, as long as those of ``raw``."""
    lengths = raw.value_lengths().to_numpy().astype(np.int64)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, flat, type=_lists_of(flat.type))


def _ids(raw: Any, feature: SparseFeature, vocabulary: Vocabulary | None) -> npt.NDArray[np.integer]:
    if feature.encoding == "bucket":
        return buckets(raw.fill_null(float("nan")).to_numpy(), feature.boundaries)
    if feature.encoding == "vocab":
        assert vocabulary is not None
        return vocabulary.encode(raw)
    if feature.encoding == "id":
        return np.asarray(raw.fill_null(MISSING).to_numpy())
    return hash_categories(raw, feature.ids)


def _id_type(feature: SparseFeature) -> pa.DataType:
    return pa.int32() if feature.ids <= 2**31 else pa.int64()


def _lists_of(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", kind, nullable=False))
