"""Decodes a Parquet row group into NumPy columns and checks them against the spec, without a loop over rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dlrm_torchrec.datasets.numpy_columns import Columns, IdLists
from dlrm_torchrec.schema import DatasetSpec, SparseFeature


def check_schema(schema: pa.Schema, spec: DatasetSpec, path: str) -> None:
    """Raises ValueError, with column and file, unless every column of the spec exists and has a type that fits."""
    expected = [(label.name, "a number or a boolean", _is_label) for label in spec.labels]
    expected += [(name, "a number", _is_number) for name in [spec.weight] if name]
    expected += [(feature.name, "a number", _is_number) for feature in spec.dense]
    expected += [
        (f.name, "a list of integers", _is_integers) if f.multi_hot else (f.name, "an integer", pa.types.is_integer)
        for f in spec.sparse
    ]
    expected += [(f.weights_name, "a list of numbers", _is_numbers) for f in spec.sparse if f.weights]
    for name, wanted, fits in expected:
        index = schema.get_field_index(name)
        if index < 0:
            raise ValueError(
                f"file {path} must have the column {name!r} of its spec: got {schema.names}; "
                "prepare it again or correct the spec"
            )
        if not fits(schema.field(index).type):
            raise ValueError(
                f"column {name!r} of {path} must be {wanted} per row: got {schema.field(index).type}; "
                "prepare it again or correct the spec"
            )


def read_row_group(file: pq.ParquetFile, group: int, spec: DatasetSpec, path: str) -> Columns:
    """All rows of one row group. Raises ValueError, with column, file and row group, if a value breaks the spec."""
    table = file.read_row_group(group, columns=spec.prepared_names, use_threads=False)
    where = f"{path}, row group {group}"

    labels = _labels(table, spec, where)
    dense = np.empty((table.num_rows, len(spec.dense)), dtype=np.float32)
    for index, feature in enumerate(spec.dense):
        column = _values(table, feature.name, where)
        with np.errstate(over="ignore"):  # overflow gives infinity, which the next check reports
            numbers = column.astype(np.float32, copy=False)
        _check(~np.isfinite(numbers), column, f"column {feature.name!r} of {where} must hold finite float32s")
        dense[:, index] = numbers
    sparse = [_bags(table, feature, where) for feature in spec.sparse]
    sparse = [_weighted(bags, table, feature, where) for bags, feature in zip(sparse, spec.sparse, strict=True)]
    return Columns(labels, dense, sparse, _row_weights(table, spec.weight, where) if spec.weight else None)


def read_bags(file: pq.ParquetFile, group: int, feature: SparseFeature, path: str) -> IdLists:
    """One sparse column of one row group. Raises ValueError like ``read_row_group``."""
    table = file.read_row_group(group, columns=[feature.name], use_threads=False)
    return _bags(table, feature, f"{path}, row group {group}")


def _labels(table: pa.Table, spec: DatasetSpec, where: str) -> NDArray[np.float32]:
    """The labels (n,) of the spec, or (n, L) with NaN where a further one is unknown."""
    labels = np.empty((len(spec.labels), table.num_rows), np.float32)
    for label, column in zip(spec.labels, labels, strict=True):
        further = label.name != spec.label
        column[:] = _known(table, label.name) if further else _values(table, label.name, where)
        if spec.target == "number":
            wrong = np.isinf(column) if further else ~np.isfinite(column)
            _check(wrong, column, f"label {label.name!r} of {where} must be a finite number")
        else:
            wrong = (column != 0) & (column != 1)
            if further:
                wrong &= ~np.isnan(column)
            _check(wrong, column, f"label {label.name!r} of {where} must be 0 or 1")
    return labels[0] if len(labels) == 1 else np.ascontiguousarray(labels.T)


def _known(table: pa.Table, name: str) -> NDArray[np.float32]:
    """The values of a column that may have nulls; these become NaN."""
    values: NDArray[np.float32] = table.column(name).cast(pa.float32(), safe=False).to_numpy()
    return values


def _row_weights(table: pa.Table, name: str, where: str) -> NDArray[np.float32]:
    weights = _values(table, name, where).astype(np.float32, copy=False)
    _check(~(weights >= 0) | np.isinf(weights), weights, f"weight {name!r} of {where} must be finite and at least 0")
    return weights


def _weighted(bags: IdLists, table: pa.Table, feature: SparseFeature, where: str) -> IdLists:
    """The bags with the weights of their ids, if the feature has any."""
    if not feature.weights:
        return bags
    name = feature.weights_name
    lists = _array(table, name, where)
    offsets = lists.offsets.to_numpy().astype(np.int64)
    wrong = np.diff(offsets) != bags.lengths
    _check(wrong, np.diff(offsets), f"column {name!r} of {where} must hold one weight for each id of its row")
    weights = _without_nulls(lists.flatten(), name, where).to_numpy().astype(np.float32, copy=False)
    _check(~np.isfinite(weights), weights, f"column {name!r} of {where} must hold finite float32s")
    return replace(bags, weights=weights)


def _bags(table: pa.Table, feature: SparseFeature, where: str) -> IdLists:
    column = _array(table, feature.name, where)
    if feature.multi_hot:
        offsets = column.offsets.to_numpy().astype(np.int64)
        column = _without_nulls(column.flatten(), feature.name, where)  # only the values that the offsets span
        bags = IdLists(column.to_numpy(), offsets - offsets[0])
    else:
        bags = IdLists(column.to_numpy())
    values = bags.values
    if len(values) and not (values.min() >= 0 and values.max() < feature.ids):
        rule = f"column {feature.name!r} of {where} must hold ids in [0, {feature.ids}), those of its table"
        _check((values < 0) | (values >= feature.ids), values, rule)
    return bags


def _values(table: pa.Table, name: str, where: str) -> NDArray[Any]:
    column = _array(table, name, where)
    values: NDArray[Any] = column.to_numpy(zero_copy_only=not pa.types.is_boolean(column.type))
    return values


def _array(table: pa.Table, name: str, where: str) -> pa.Array:
    column = table.column(name)
    return _without_nulls(column.chunk(0) if column.num_chunks == 1 else column.combine_chunks(), name, where)


def _without_nulls(array: pa.Array, name: str, where: str) -> pa.Array:
    if array.null_count:
        raise ValueError(
            f"column {name!r} of {where} must have no nulls: got {array.null_count}; "
            "fill them when preparing (an empty list is a bag without ids)"
        )
    return array


def _check(wrong: NDArray[np.bool_], values: NDArray[Any], rule: str) -> None:
    if wrong.any():
        raise ValueError(f"{rule}: got {values[wrong.argmax()]}; prepare the data again or correct the spec")


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _is_label(kind: pa.DataType) -> bool:
    return _is_number(kind) or bool(pa.types.is_boolean(kind))


def _is_integers(kind: pa.DataType) -> bool:
    return _is_list(kind) and bool(pa.types.is_integer(kind.value_type))


def _is_numbers(kind: pa.DataType) -> bool:
    return _is_list(kind) and _is_number(kind.value_type)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))
