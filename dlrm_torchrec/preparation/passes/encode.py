"""Turns raw rows into prepared rows, with the columns that a training stream reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dlrm_torchrec.preparation.readers.rows import Rows, int_buffers
from dlrm_torchrec.preparation.vocabularies.hashing import fold, hash_ids, hash_text
from dlrm_torchrec.preparation.vocabularies.vocabulary import MISSING, Vocabulary
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, SparseFeature


def prepared_schema(spec: DatasetSpec) -> pa.Schema:
    """float32 label and dense columns, int32 ids (int64 above 2^31 rows) or lists of them; never null."""
    fields = [(spec.label, pa.float32()), *((feature.name, pa.float32()) for feature in spec.dense)]
    for feature in spec.sparse:
        ids = _id_type(feature)
        kind = pa.list_(pa.field("element", ids, nullable=False)) if feature.multi_hot else ids
        fields.append((feature.name, kind))
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields])


def encode(rows: Rows, spec: DatasetSpec, vocabularies: Mapping[str, Vocabulary]) -> pa.Table:
    """The rows as a table of ``prepared_schema``; ``vocabularies`` holds one per ``vocab`` feature."""
    columns: list[Any] = [pa.array(rows.label)]
    columns += [pa.array(dense_values(rows.dense[:, i], feature)) for i, feature in enumerate(spec.dense)]
    for feature, raw in zip(spec.sparse, rows.sparse, strict=True):
        columns.append(_sparse(raw, feature, vocabularies.get(feature.name)))
    return pa.Table.from_arrays(columns, schema=prepared_schema(spec))


def dense_values(raw: npt.NDArray[np.float64], feature: DenseFeature) -> npt.NDArray[np.float32]:
    """The values with NaN replaced by the default, then log(1 + max(x, 0)) if the feature asks for it, in float64."""
    values = np.where(np.isnan(raw), feature.default, raw)
    if feature.log1p:
        values = np.log1p(np.maximum(values, 0.0)) + 0.0  # max may give 0 or -0, depending on memory; this makes it 0
    return values.astype(np.float32)


def _sparse(raw: Any, feature: SparseFeature, vocabulary: Vocabulary | None) -> Any:
    flat = raw.flatten() if feature.multi_hot else raw
    kind = _id_type(feature)
    ids = pa.array(_ids(flat, feature, vocabulary).astype(kind.to_pandas_dtype(), copy=False))
    if not feature.multi_hot:
        return ids
    lengths = raw.value_lengths().to_numpy().astype(np.int64)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, ids, type=pa.list_(pa.field("element", ids.type, nullable=False)))


def _ids(raw: Any, feature: SparseFeature, vocabulary: Vocabulary | None) -> npt.NDArray[np.integer]:
    if feature.encoding == "vocab":
        assert vocabulary is not None
        return vocabulary.encode(raw)
    if feature.encoding == "id":
        return np.asarray(raw.fill_null(MISSING).to_numpy())
    if pa.types.is_string(raw.type):
        missing = raw.is_null().to_numpy(zero_copy_only=False)
        return np.where(missing, MISSING, fold(hash_text(raw), feature.rows))
    ids = np.empty(len(raw), np.int64)
    hash_ids(*int_buffers(raw), ids, rows=feature.rows, if_missing=MISSING)
    return ids


def _id_type(feature: SparseFeature) -> pa.DataType:
    return pa.int32() if feature.rows <= 2**31 else pa.int64()
