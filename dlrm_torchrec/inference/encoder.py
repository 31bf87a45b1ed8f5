"""Turns the raw values of requests into the inputs of a model, exactly as preparation turns raw files into rows.

A package holds a copy of this file, which needs only numpy and pyarrow.
"""

from __future__ import annotations

import reprlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dlrm_torchrec.inference.lookups import MANAGED_IDS, Categories, Lookup, hashed_ids, id_lookup, read_categories
from dlrm_torchrec.raw_values import (
    TextForm,
    UnfitTypeError,
    buckets,
    lists,
    numbers,
    plain,
    scaled,
    times,
)

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Key = tuple[str, bool]  # a raw column, and whether it holds lists
Reader = Callable[[Any, TextForm], tuple[Any, ...]]  # the parts of a reading, each as long as the values
Found = Mapping[tuple[Reader, Key], tuple[Any, ...]]

_DAY_S = 86_400
_FLOAT32_END = 2.0**128 - 2.0**103  # numbers below this become a finite float32
_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), type(None): pa.null()}
_PLAIN = set(_TYPES.values())
_HOLDS: dict[Any, str] = {numbers: "numbers", times: "times", read_categories: "whole numbers or texts"}
_SINGLE = "single numbers or texts"
_short = reprlib.Repr()
_short.maxlevel, _short.maxstring, _short.maxother = 2, 60, 60


@dataclass(frozen=True)
class Inputs:
    """B rows in the form that the model takes."""

    dense: Floats  # (B, D)
    ids: tuple[Ids, ...]  # the ids of each of F sparse features, row by row
    lengths: npt.NDArray[np.int32]  # (F, B) ids per row
    weights: tuple[Floats, ...]  # a weight for each id of each feature; empty if no feature has weights
    unseen: Ids  # (F,) number of unknown raw values

    def __len__(self) -> int:
        return len(self.dense)

    @property
    def groups(self) -> None:
        """A row has one prediction for each label."""
        return

    @property
    def arrays(self) -> list[npt.NDArray[Any]]:
        """The arguments of the model's program."""
        weights = [np.concatenate(self.weights)] if self.weights else []
        return [self.dense, np.concatenate(self.ids), self.lengths.reshape(-1), *weights]

    def pieces(self) -> Iterator[Inputs]:
        """All rows at once."""
        yield self

    @staticmethod
    def joined(several: Sequence[Any]) -> Inputs:
        """The rows of one or more requests, in order."""
        return Inputs(
            dense=np.concatenate([inputs.dense for inputs in several]),
            ids=tuple(np.concatenate(ids) for ids in zip(*(inputs.ids for inputs in several), strict=True)),
            lengths=np.concatenate([inputs.lengths for inputs in several], axis=1),
            weights=tuple(np.concatenate(each) for each in zip(*(inputs.weights for inputs in several), strict=True)),
            unseen=np.sum([inputs.unseen for inputs in several], axis=0),
        )


@dataclass(frozen=True)
class _Column:
    """The values of a raw column; in several Arrow arrays if their Python types differ."""

    pieces: list[Any]
    order: Ids | None = None  # the place of each value in the joined pieces; None if they are in order
    lengths: Any = 1  # values per row: int64 (B,) for a column of lists


class Encoder:
    """Maps raw columns to ``Inputs`` by a spec; threads may share it."""

    def __init__(
        self,
        spec: Mapping[str, Any],
        vocabularies: Mapping[str, Lookup],
        *,
        also: Sequence[str] = (),
        unread: Iterable[str] = (),
    ) -> None:
        """``spec`` is the JSON of a DatasetSpec; ``vocabularies`` has one for each of its ``vocab`` features.

        Rows must have the columns ``also``, too, which the caller reads, and may have those that are ``unread``.
        """
        self.name: str = spec["name"]
        self.dense, self.sparse = spec["dense"], spec["sparse"]
        self.form = TextForm(missing=spec["missing"], decimal=spec["decimal"], thousands=spec["thousands"])
        self.lookups = {feature["name"]: id_lookup(feature["rows"]) for feature in self.sparse} | dict(vocabularies)
        self.dense_from = [_place(feature) for feature in self.dense]
        self.sparse_from = [_place(feature) for feature in self.sparse]
        weights = [(numbers, (feature["weights"], True)) for feature in self.sparse if feature["weights"]]
        self.weighted = bool(weights)
        self.reads: dict[Reader, dict[Key, None]] = defaultdict(dict)
        places = [*self.dense_from, *self.sparse_from, *weights]
        for read, key in places:
            self.reads[read][key] = None
        self.keys = dict.fromkeys(key for _, key in places)
        self.columns = tuple(dict.fromkeys(name for name, _ in self.keys))
        self.wanted = (*self.columns, *also)
        ignored = {spec["label"], spec["weight"], *(label["name"] for label in spec["more_labels"])} - {""}
        self.known = {*self.wanted, *ignored, *unread}
        self.scales = _by_steps(self.dense)

    def __call__(self, columns: Mapping[str, Any]) -> Inputs:
        """B rows, from a list, NumPy array or Arrow array of B raw values per raw column; see ``raw_values``.

        None, null and NaN are missing too. A category that training did not see becomes its feature's unseen id, an id
        outside the table 0. Labels and weights of rows are ignored. Raises ValueError when columns are not those of the
        spec, or for a value that preparation refuses.
        """
        columns = self._checked(columns)
        rows = len(columns[self.columns[0]])
        columns |= _converted({name: columns[name] for name, listed in self.keys if not listed}, rows)
        flat = {key: _flat(columns[key[0]], key) for key in self.keys}
        found = {
            (read, key): parts
            for read, keys in self.reads.items()
            for key, parts in _read({key: flat[key] for key in keys}, read, self.form).items()
        }
        lengths: npt.NDArray[np.int32] = np.ones((len(self.sparse), rows), np.int32)
        for row, (_, key) in zip(lengths, self.sparse_from, strict=True):
            row[:] = flat[key].lengths
        ids, unseen = self._ids(found)
        weights = self._weights(found, flat, ids) if self.weighted else ()
        return Inputs(self._dense(found, rows), ids, lengths, weights, unseen)

    def _checked(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """The raw columns, all of the same length."""
        if not isinstance(columns, Mapping):
            raise ValueError(f"columns must be an object: got {_short.repr(columns)}; send the values of each column")
        absent = [name for name in self.wanted if name not in columns]
        unknown = [name for name in columns if name not in self.known]
        if absent or unknown:
            got = (f"{what} {_short.repr(names)}" for what, names in (("no", absent), ("unknown", unknown)) if names)
            raise ValueError(
                f"columns must be the raw ones of {self.name!r}: got {' and '.join(got)}; send all columns and "
                "nothing else, with null for a missing value"
            )
        checked = {name: _column(columns[name], name) for name in self.columns}
        sizes = {len(column): name for name, column in checked.items()}
        if len(sizes) > 1:
            found = ", ".join(f"{size} of {name!r}" for size, name in sizes.items())
            raise ValueError(f"columns must have one value per row: got {found}; send null for a missing value")
        return checked

    def _dense(self, found: Found, rows: int) -> Floats:
        values = np.empty((len(self.dense), rows))
        for row, place in zip(values, self.dense_from, strict=True):
            row[:] = found[place][0]
        infinite = np.abs(values) >= _FLOAT32_END
        if infinite.any():
            number, row = np.argwhere(infinite)[0]
            _refuse(self.dense_from[number][1][0], "finite float32 numbers", values[number, row].item())
        for row, feature in zip(values, self.dense, strict=True):
            if feature["part"] == "missing":
                row[:] = np.isnan(row)
            elif feature["part"] == "days":
                row /= _DAY_S
        dense = np.empty((rows, len(self.dense)), np.float32)
        for members, steps in self.scales:
            dense[:, members] = scaled(values[members], steps).T
        return dense

    def _ids(self, found: Found) -> tuple[tuple[Ids, ...], Ids]:
        """The ids of each feature, and how many of its values are unknown."""
        ids: list[Any] = [None] * len(self.sparse)
        unseen = np.zeros(len(ids), np.int64)
        hashed: dict[int, tuple[Categories, int]] = {}
        for number, (feature, place) in enumerate(zip(self.sparse, self.sparse_from, strict=True)):
            encoding, parts = feature["encoding"], found[place]
            if encoding == "bucket":
                ids[number] = buckets(_numbers(parts, feature["part"]), feature["boundaries"])
                continue
            categories = Categories.of_part(feature["part"], parts)
            if encoding in ("hash", "managed"):
                hashed[number] = categories, feature["rows"] if encoding == "hash" else MANAGED_IDS
                continue
            if encoding == "id" and categories.is_text.any():
                _refuse(place[1][0], "whole numbers", categories.texts.drop_null()[0].as_py())
            ids[number], unseen[number] = self.lookups[feature["name"]](categories)
        if hashed:
            for number, own in zip(hashed, hashed_ids(list(hashed.values())), strict=True):
                ids[number] = own
        return tuple(ids), unseen

    def _weights(self, found: Found, flat: Mapping[Key, _Column], ids: Sequence[Ids]) -> tuple[Floats, ...]:
        weights: list[Floats] = []
        for feature, (_, key), own in zip(self.sparse, self.sparse_from, ids, strict=True):
            name = feature["weights"]
            if not name:
                weights.append(np.ones(len(own), np.float32))
                continue
            lengths, wanted = flat[name, True].lengths, flat[key].lengths
            unequal = np.flatnonzero(lengths != wanted)
            if len(unequal):
                row = unequal[0]
                raise ValueError(
                    f"column {name!r} must have a weight for each value of {key[0]!r}: got {lengths[row]} for "
                    f"{wanted[row]} in row {row}; send lists of the same lengths"
                )
            (values,) = found[numbers, (name, True)]
            wrong = values[~(np.abs(values) < _FLOAT32_END)]
            if len(wrong):
                _refuse(name, "finite float32 numbers and none that is missing", wrong[0].item())
            weights.append(values.astype(np.float32))
        return tuple(weights)


def read_flat(column: Any, key: Key, read: Reader, form: TextForm) -> tuple[tuple[Any, ...], Any]:
    """What ``read`` makes of the values of a column, one after the other, and the number of values of each row."""
    name, _ = key
    flat = _flat(_column(column, name), key)
    return _read({key: flat}, read, form)[key], flat.lengths


def _place(feature: Mapping[str, Any]) -> tuple[Reader, Key]:
    """How a feature's raw column is read, and which one it is."""
    key = feature["column"] or feature["name"], feature.get("multi_hot", False)
    if feature["part"] in ("days", "hour", "weekday"):
        return times, key
    is_dense = "encoding" not in feature
    if is_dense or feature["part"] in ("number", "squared_log") or feature["encoding"] == "bucket":
        return numbers, key
    return read_categories, key


def _by_steps(dense: Sequence[Mapping[str, Any]]) -> list[tuple[list[int], dict[str, Any]]]:
    """The places of dense features that are scaled by the same steps, and these steps with a row for each of them."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for place, feature in enumerate(dense):
        groups[feature["default"] is None, feature["log1p"], feature["standardise"]].append(place)

    def numbers_of(places: list[int], name: str) -> npt.NDArray[np.float64]:
        return np.array([dense[place][name] for place in places]).reshape(-1, 1)

    steps = []
    for (uses_mean, log1p, standardise), places in groups.items():
        scale: dict[str, Any] = {"log1p": log1p, "standardise": standardise}
        scale["default"] = None if uses_mean else numbers_of(places, "default")
        if standardise:
            scale |= {name: numbers_of(places, name) for name in ("mean", "deviation")}
        steps.append((places, scale))
    return steps


def _numbers(parts: tuple[Any, ...], part: str) -> Any:
    if part in ("value", "number"):
        return parts[0]
    categories = Categories.of_part(part, parts)
    return np.where(categories.is_integer, categories.integers, np.nan)


def _read(columns: Mapping[Key, _Column], read: Reader, form: TextForm) -> dict[Key, tuple[Any, ...]]:
    """What ``read`` makes of each column, without the mask of what is malformed, which is refused.

    All values of a type are read at once, because a call of Arrow costs more than the values of a short column.
    """
    groups: dict[Any, list[tuple[Key, int, Any]]] = defaultdict(list)
    for key, column in columns.items():
        for number, piece in enumerate(column.pieces):
            groups[piece.type].append((key, number, piece))
    found: dict[Key, list[tuple[Any, ...]]] = {key: [()] * len(column.pieces) for key, column in columns.items()}
    for kind, group in groups.items():
        joined = pa.concat_arrays([piece for *_, piece in group]) if len(group) > 1 else group[0][2]
        try:
            *parts, malformed = read(joined, form)
        except UnfitTypeError:
            _refuse(group[0][0][0], _HOLDS[read], kind)
        wrong = malformed.argmax() if malformed.any() else -1
        first = 0
        for key, number, piece in group:
            last = first + len(piece)
            if first <= wrong < last:
                _refuse(key[0], _HOLDS[read], joined[wrong].as_py())
            found[key][number] = tuple([part[first:last] for part in parts])
            first = last
    return {key: _in_order(pieces, columns[key].order) for key, pieces in found.items()}


def _in_order(pieces: list[tuple[Any, ...]], order: Ids | None) -> tuple[Any, ...]:
    if order is None:
        return pieces[0]
    return tuple(
        np.concatenate(parts)[order] if isinstance(parts[0], np.ndarray) else pa.concat_arrays(parts).take(order)
        for parts in zip(*pieces, strict=True)
    )


def _column(column: Any, name: str) -> Any:
    """The column as a list, a NumPy array or an Arrow array."""
    if isinstance(column, pa.ChunkedArray):
        return column.combine_chunks()
    if not isinstance(column, (list, tuple, pa.Array, np.ndarray)) or (
        isinstance(column, np.ndarray) and not column.ndim
    ):
        _refuse(name, "one value per row", column)
    return column


def _converted(columns: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Arrow arrays of lists; all whose values have one Python type are converted at once, which is quicker."""
    groups: dict[type, list[str]] = defaultdict(list)
    for name, column in columns.items():
        if rows and isinstance(column, list):
            groups[type(column[0])].append(name)
    found: dict[str, Any] = {}
    for kind, names in groups.items():
        array = _array(list(chain.from_iterable(columns[name] for name in names)))
        if array is not None and array.type == _TYPES.get(kind):  # else other values could change a column's type
            found |= {name: array[rows * number : rows * (number + 1)] for number, name in enumerate(names)}
    return found


def _flat(column: Any, key: Key) -> _Column:
    name, listed = key
    if not listed:
        return _Column(*_pieces(column, name))
    if not isinstance(column, pa.Array):
        bags = [() if value is None or (isinstance(value, float) and np.isnan(value)) else value for value in column]
        for bag in bags:
            if not isinstance(bag, (list, tuple, np.ndarray)):
                _refuse(name, "a list of values per row", bag)
        lengths = np.array([len(bag) for bag in bags], np.int64)
        return _Column(*_pieces(list(chain.from_iterable(bags)), name), lengths)
    if pa.types.is_null(column.type):
        return _Column([column[:0]], None, np.zeros(len(column), np.int64))
    try:
        flat, offsets = lists(column)
    except UnfitTypeError:
        _refuse(name, "a list of values per row", column.type)
    return _Column([_plain(flat, name)], None, np.diff(offsets))


def _pieces(values: Any, name: str) -> tuple[list[Any], Ids | None]:
    """Values as one Arrow array, or one per Python type with the place of each value in all of them."""
    array = values if isinstance(values, pa.Array) else _array(values)
    if array is not None:
        return [_plain(array, name)], None
    places: dict[type, list[int]] = defaultdict(list)
    for place, value in enumerate(values):
        places[type(value)].append(place)
    pieces = []
    for kind, own in places.items():
        members = [values[place] for place in own]
        array = _array([str(value) for value in members] if kind is int else members)  # integers of any size
        if array is None:
            _refuse(name, _SINGLE, next((each for each in members if _array([each]) is None), members[0]))
        pieces.append(_plain(array, name))
    return pieces, np.argsort(np.concatenate(list(places.values())))


def _plain(array: Any, name: str) -> Any:
    if array.type in _PLAIN:
        return array
    try:
        return plain(array)
    except UnfitTypeError:
        _refuse(name, _SINGLE, array.type)


def _array(values: Any) -> Any:
    """An Arrow array; None when the values have no type in common."""
    try:
        return pa.array(values, from_pandas=True)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return None


def _refuse(name: str, holds: str, found: object) -> NoReturn:
    shown = _short.repr(str(found))[1:-1] if isinstance(found, pa.DataType) else _short.repr(found)
    raise ValueError(f"column {name!r} must hold {holds}: got {shown}; correct it, or send null instead") from None
