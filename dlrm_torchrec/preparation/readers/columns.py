"""Checks raw Arrow columns, text or typed, and converts them to the columns of ``Rows``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dlrm_torchrec.preparation.readers.rows import Checks, Ints, Mask, Rows
from dlrm_torchrec.schema import DatasetSpec, SparseFeature

NUMBER = r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_INTEGER = r"^-?[0-9]{1,18}$"  # 18 digits always fit int64


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of a spec in raw files: which columns must exist, and how they become ``Rows``."""

    spec: DatasetSpec
    negative_label: str | None = None  # the text that means 0; None: any text except the spec's positive_label
    labelled: bool = True

    @property
    def names(self) -> list[str]:
        label = [self.spec.label] if self.labelled else []
        return [*label, *self.spec.feature_names]

    def check(self, path: str, header: list[str]) -> None:
        """Raises ValueError unless ``header``, the columns of the file, has each column of the spec exactly once."""
        unfit = [name for name in self.names if header.count(name) != 1]
        if unfit:
            raise ValueError(
                f"{path} must have each column of the spec once: got {header}, wrong for {unfit}; correct the spec"
            )

    def rows(self, numbers: Ints, column: Callable[[str], Any], checks: Checks) -> Rows:
        """All B rows, also the malformed ones, which ``checks`` then lists; ``column`` gives an Arrow array."""
        spec = self.spec
        label = np.zeros(len(numbers), np.float32)
        if self.labelled:
            positive, negative = spec.positive_label, self.negative_label
            label = label_column(column(spec.label), checks, name=spec.label, positive=positive, negative=negative)
        dense = [dense_column(column(feature.name), feature.name, checks) for feature in spec.dense]
        return Rows(
            numbers=numbers,
            label=label,
            dense=np.stack(dense, axis=1) if dense else np.zeros((len(numbers), 0)),
            sparse=tuple(sparse_column(column(feature.name), feature, checks) for feature in spec.sparse),
        )


def label_column(
    column: Any, checks: Checks, *, name: str, positive: str | None, negative: str | None
) -> npt.NDArray[np.float32]:
    """Labels (B,) 0 or 1.

    With ``positive``, that text is 1 and ``negative`` is 0; without ``negative``, any other text is 0. Without
    ``positive``, the values are numbers. A row is malformed if its label is missing or has any other value.
    """
    if positive is None:
        values = _numbers(column, name, checks)
        checks.reject((values != 0) & (values != 1), f"{name} is not 0 or 1")
    else:
        text = column.cast(pa.string())
        values = _to_numpy(pc.equal(text, positive).fill_null(fill_value=False)).astype(np.float64)
        known = text.is_valid() if negative is None else pc.is_in(text, value_set=pa.array([positive, negative]))
        checks.reject(~_to_numpy(known), f"{name} is not a known label")
    return values.astype(np.float32)


def dense_column(column: Any, name: str, checks: Checks) -> npt.NDArray[np.float64]:
    """Numbers (B,); NaN for a missing value (null, NaN or an empty text)."""
    values = _numbers(column, name, checks)
    with np.errstate(over="ignore"):
        checks.reject(np.isinf(values.astype(np.float32)), f"{name} is not a finite float32")
    return values


def sparse_column(column: Any, feature: SparseFeature, checks: Checks) -> Any:
    """An Arrow array (B,) of int64 or string values, or of lists of them if ``multi_hot``; null for a missing value.

    A null list is an empty list. An id of an ``id`` feature outside [0, rows) makes its row malformed.
    """
    if not feature.multi_hot:
        values, bad = _categories(column, feature)
        checks.reject(bad, _problem(feature))
        return values
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise ValueError(f"multi-hot column {feature.name!r} must hold lists: got {column.type}; unset its multi_hot")
    values, bad = _categories(column.flatten(), feature)  # flatten skips null lists
    lengths = _to_numpy(pc.list_value_length(column).fill_null(0)).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    bad_before = np.concatenate([[0], np.cumsum(bad)])
    checks.reject(bad_before[offsets[1:]] > bad_before[offsets[:-1]], _problem(feature))
    return pa.LargeListArray.from_arrays(pa.array(offsets), values)


def _problem(feature: SparseFeature) -> str:
    return (
        f"{feature.name} is not an id in [0, {feature.rows})"
        if feature.encoding == "id"
        else (f"{feature.name} is not a whole number")
    )


def _categories(column: Any, feature: SparseFeature) -> tuple[Any, Mask]:
    """Flat values as int64 or string, and which of them are malformed."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    bad = np.zeros(len(column), dtype=bool)
    if pa.types.is_floating(kind):  # pandas stores integers with missing values as floats
        values = column.cast(pa.float64())
        column = pc.if_else(pc.is_nan(values), pa.scalar(None, pa.float64()), values)
        whole = pc.and_(pc.equal(pc.floor(column), column), pc.less(pc.abs(column), 2.0**53)).fill_null(fill_value=True)
        bad |= ~_to_numpy(whole)
        column = pc.if_else(whole, column, 0.0).cast(pa.int64())
    elif pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        column = column.cast(pa.int64(), safe=False)  # uint64 keeps its 64 bits
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        column = column.cast(pa.string())
        if feature.encoding == "id":
            whole = pc.match_substring_regex(column, _INTEGER).fill_null(fill_value=True)
            bad |= ~_to_numpy(whole)
            column = pc.if_else(whole, column, "0").cast(pa.int64())
    else:
        raise ValueError(
            f"sparse column {feature.name!r} must hold integers or text: got {kind}; convert it before preparing"
        )
    if feature.encoding == "id":
        inside = pc.and_(pc.greater_equal(column, 0), pc.less(column, feature.rows)).fill_null(fill_value=True)
        bad |= ~_to_numpy(inside)
    return column, bad


def _numbers(column: Any, name: str, checks: Checks) -> npt.NDArray[np.float64]:
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        column = pc.if_else(pc.equal(column, ""), pa.scalar(None, kind), column)
        valid = pc.match_substring_regex(column, NUMBER).fill_null(fill_value=True)
        checks.reject(~_to_numpy(valid), f"{name} is not a number")
        column = pc.if_else(valid, column, pa.scalar(None, kind))
    elif pa.types.is_boolean(kind):
        column = column.cast(pa.uint8())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise ValueError(f"column {name!r} must hold numbers: got {kind}; convert it before preparing")
    return _to_numpy(column.cast(pa.float64(), safe=False).fill_null(float("nan"))).astype(np.float64)


def _to_numpy(column: Any) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return values
