"""Checks raw Arrow columns, text or typed, and converts them to the columns of ``Rows`` by a ``DatasetSpec``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dlrm_torchrec import raw_values
from dlrm_torchrec.preparation.readers.rows import Checks, Ints, Mask, Rows
from dlrm_torchrec.raw_values import TextForm, UnfitTypeError
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, Label, SparseFeature

Result = TypeVar("Result")
_DAY_S = 86_400


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of a spec in raw files: which columns must exist, and how they become ``Rows``."""

    spec: DatasetSpec
    negative_label: str | None = None  # the value that means 0; None: any value except the spec's positive_label
    labelled: bool = True
    also: tuple[str, ...] = ()  # further raw columns, which ``Rows.also`` then holds

    @property
    def names(self) -> list[str]:
        """The raw columns, each once."""
        spec = self.spec
        labels = [label.name for label in spec.labels] if self.labelled else []
        weight = [spec.weight] if spec.weight and self.labelled else []
        return list(dict.fromkeys([*labels, *weight, *spec.raw_features, *self.also]))

    @property
    def form(self) -> TextForm:
        """How raw text is written."""
        return TextForm(missing=self.spec.missing, decimal=self.spec.decimal, thousands=self.spec.thousands)

    def check(self, path: str, header: list[str]) -> None:
        """Raises ValueError unless ``header``, the columns of the file, has each column of the spec exactly once."""
        unfit = [name for name in self.names if header.count(name) != 1]
        if unfit:
            raise ValueError(
                f"{path} must have each column of the spec once: got {header}, wrong for {unfit}; correct the spec"
            )

    def rows(self, numbers: Ints, column: Callable[[str], Any], checks: Checks) -> Rows:
        """All B rows, also the malformed ones, which ``checks`` then lists; ``column`` gives raw Arrow arrays."""
        spec, form = self.spec, self.form
        label, more, weight = np.zeros(len(numbers), np.float32), [], None
        if self.labelled:
            main, *others = spec.labels
            label = self._label(column(main.name), main, checks)
            checks.reject(np.isnan(label), f"{main.name} is missing")
            more = [self._label(column(other.name), other, checks) for other in others]
            weight = _weight(column(spec.weight), spec.weight, form, checks) if spec.weight else None
        elif spec.more_labels or spec.weight:
            more = [np.full(len(numbers), np.nan, np.float32) for _ in spec.more_labels]
            weight = np.ones(len(numbers), np.float32) if spec.weight else None
        dense = [dense_column(column(feature.raw), feature, form, checks) for feature in spec.dense]
        sparse = tuple(sparse_column(column(feature.raw), feature, form, checks) for feature in spec.sparse)
        return Rows(
            numbers=numbers,
            label=label,
            more_labels=tuple(more),
            weight=weight,
            dense=np.stack(dense, axis=1) if dense else np.zeros((len(numbers), 0)),
            sparse=sparse,
            id_weights=tuple(
                _id_weights(column(feature.weights), feature, ids, form=form, checks=checks)
                for feature, ids in zip(spec.sparse, sparse, strict=True)
                if feature.weights
            ),
            also={name: column(name) for name in self.also},
        )

    def _label(self, column: Any, label: Label, checks: Checks) -> npt.NDArray[np.float32]:
        return label_column(
            column,
            label,
            self.form,
            checks,
            negative=self.negative_label if label.name == self.spec.label else None,
            binary=self.spec.target == "binary",
        )


def label_column(
    column: Any, label: Label, form: TextForm, checks: Checks, *, negative: str | None, binary: bool
) -> npt.NDArray[np.float32]:
    """Labels (B,), NaN where missing.

    With a positive label, its value is 1 and ``negative`` is 0; without ``negative``, any other value is 0. Otherwise
    the values are numbers: 0 and 1 if ``binary``, or else any. A row is malformed if its label has another value.
    """
    if label.positive_label is None:
        values, bad = _read(raw_values.numbers, column, label.name, wanted="numbers", form=form)
        if binary:
            checks.reject(bad | ((values != 0) & (values != 1) & ~np.isnan(values)), f"{label.name} is not 0 or 1")
        else:
            checks.reject(bad | _is_infinite(values), f"{label.name} is not a finite number")
        return values.astype(np.float32)
    found, bad = _read(raw_values.categories, column, label.name, wanted="categories", form=form)
    texts = raw_values.texts(found)
    positive = _canonical(label.positive_label, form)
    is_one = pc.equal(texts, positive)
    values = np.where(_to_numpy(found.is_valid()), _to_numpy(is_one.fill_null(fill_value=False)), np.nan)
    if negative is not None:
        known = pc.is_in(texts, value_set=pa.array([positive, _canonical(negative, form)]))
        bad = bad | (~_to_numpy(known) & _to_numpy(found.is_valid()))
    checks.reject(bad, f"{label.name} is not a known label")
    return values.astype(np.float32)


def dense_column(column: Any, feature: DenseFeature, form: TextForm, checks: Checks) -> npt.NDArray[np.float64]:
    """The wanted part of a column as numbers (B,); NaN for a missing value."""
    name = feature.raw
    if feature.part == "days":
        seconds, bad = _read(raw_values.times, column, name, wanted="times", form=form)
        checks.reject(bad, f"{name} is not a time")
        return seconds / _DAY_S
    values, bad = _read(raw_values.numbers, column, name, wanted="numbers", form=form)
    checks.reject(bad, f"{name} is not a number")
    checks.reject(_is_infinite(values), f"{name} is not a finite float32")
    return np.isnan(values).astype(np.float64) if feature.part == "missing" else values


def sparse_column(column: Any, feature: SparseFeature, form: TextForm, checks: Checks) -> Any:
    """An Arrow array (B,) of canonical categories (of float64 for buckets), or lists of them if ``multi_hot``.

    Missing values are null, a null list is an empty one. A value outside the rows of an ``id`` feature is malformed.
    """
    name = feature.raw
    if not feature.multi_hot:
        if raw_values.is_list(column.type):
            raise ValueError(f"column {name!r} must hold one value per row: got {column.type}; set its multi_hot")
        values, bad = _values(column, feature, form)
        checks.reject(bad, _problem(feature))
        return values
    flat, offsets = _read(lambda values, _: raw_values.lists(values), column, name, wanted="lists", form=form)
    values, bad = _values(flat, feature, form)
    bad_before = np.concatenate([[0], np.cumsum(bad)])
    checks.reject(bad_before[offsets[1:]] > bad_before[offsets[:-1]], _problem(feature))
    return pa.LargeListArray.from_arrays(pa.array(offsets), values)


def _problem(feature: SparseFeature) -> str:
    if feature.encoding == "id":
        return f"{feature.raw} is not an id in [0, {feature.rows})"
    if feature.part in ("hour", "weekday"):
        return f"{feature.raw} is not a time"
    return f"{feature.raw} is not a {'number' if _is_numeric(feature) else 'whole number'}"


def _is_numeric(feature: SparseFeature) -> bool:
    return feature.encoding == "bucket" or feature.part in ("number", "squared_log")


def _values(column: Any, feature: SparseFeature, form: TextForm) -> tuple[Any, Mask]:
    """Flat values, and which of them are malformed."""
    name = feature.raw
    if feature.part in ("hour", "weekday"):
        seconds, bad = _read(raw_values.times, column, name, wanted="times", form=form)
        return (raw_values.hours if feature.part == "hour" else raw_values.weekdays)(seconds), bad
    if _is_numeric(feature):
        numbers, bad = _read(raw_values.numbers, column, name, wanted="numbers", form=form)
        if feature.part == "squared_log":
            return raw_values.squared_logs(numbers), bad
        if feature.encoding == "bucket":
            return pa.array(numbers, from_pandas=True), bad
        return raw_values.number_categories(numbers), bad
    values, bad = _read(raw_values.categories, column, name, wanted="categories", form=form)
    if feature.encoding == "id":
        values, texts = raw_values.kinds(values)
        inside = pc.and_(pc.greater_equal(values, 0), pc.less(values, feature.rows)).fill_null(fill_value=True)
        bad = bad | ~_to_numpy(inside) | _to_numpy(texts.is_valid())
    return values, bad


def _weight(column: Any, name: str, form: TextForm, checks: Checks) -> npt.NDArray[np.float32]:
    values, bad = _read(raw_values.numbers, column, name, wanted="numbers", form=form)
    checks.reject(bad | ~(values >= 0) | _is_infinite(values), f"{name} is not a weight of at least 0")
    return values.astype(np.float32)


def _id_weights(column: Any, feature: SparseFeature, ids: Any, *, form: TextForm, checks: Checks) -> Any:
    name = feature.weights
    flat, offsets = _read(lambda values, _: raw_values.lists(values), column, name, wanted="lists", form=form)
    values, bad = _read(raw_values.numbers, flat, name, wanted="numbers", form=form)
    bad = bad | np.isnan(values) | _is_infinite(values)
    bad_before = np.concatenate([[0], np.cumsum(bad)])
    checks.reject(bad_before[offsets[1:]] > bad_before[offsets[:-1]], f"{name} is not a list of numbers")
    unequal = np.diff(offsets) != _to_numpy(ids.value_lengths())
    checks.reject(unequal, f"{name} has not as many weights as {feature.raw} has values")
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values.astype(np.float32)))


def _read(read: Callable[[Any, TextForm], Result], column: Any, name: str, *, wanted: str, form: TextForm) -> Result:
    try:
        return read(column, form)
    except UnfitTypeError as error:
        raise ValueError(
            f"column {name!r} must hold {wanted}: got {error}; convert it before preparing, or leave it out"
        ) from error


def _canonical(text: str, form: TextForm) -> str | None:
    found, _ = raw_values.categories(pa.array([text]), form)
    canonical: str | None = raw_values.texts(found)[0].as_py()
    return canonical


def _is_infinite(values: npt.NDArray[np.float64]) -> Mask:
    with np.errstate(over="ignore"):
        infinite: Mask = np.isinf(values.astype(np.float32))
    return infinite


def _to_numpy(column: Any) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return values
