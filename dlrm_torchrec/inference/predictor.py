"""Predicts probabilities from raw values with this package. It needs only numpy, pyarrow, torch and fbgemm_gpu.

    python predictor.py rows.json

prints {"probabilities": [...], "unseen": {...}} for a JSON list of objects that name every feature, with null for a
missing value; ``-`` reads the list from standard input. A program with this folder on its path passes columns:

    from predictor import Predictor
    Predictor.load("package")({"age": [39, None], "city": ["Kraków", "Paris"]}).probabilities
"""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
import sys
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pyarrow import types

Ids = npt.NDArray[np.int64]

FORMAT, MANIFEST = 1, "package.json"
MISSING, UNSEEN, FIRST = 0, 1, 2  # ids of a vocabulary; 0 means missing in the other encodings too

_UNKNOWN = -1  # marks an unknown value until its id is chosen
_WHOLE, _WHOLE_OR_TEXT = "whole numbers of 64 bits", "whole numbers of 64 bits, or only texts"
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_ID = re.compile(r"-?[0-9]{1,18}")
_NUMBER_TYPES = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal, types.is_null)
_FLOAT32_END = 2.0**128 - 2.0**103  # numbers below this become a finite float32
_FNV_OFFSET, _FNV_PRIME = 0xCBF29CE484222325, 0x100000001B3
_short = reprlib.Repr()
_short.maxlevel, _short.maxstring, _short.maxother = 2, 60, 60


@dataclass(frozen=True)
class Inputs:
    """B rows in the form that the model takes."""

    dense: npt.NDArray[np.float32]  # (B, D)
    ids: tuple[Ids, ...]  # the ids of each of F sparse features, row by row
    lengths: npt.NDArray[np.int32]  # (F, B) ids per row
    unseen: Ids  # (F,) number of unknown raw values

    def __len__(self) -> int:
        return len(self.dense)

    @staticmethod
    def joined(several: Sequence[Inputs]) -> Inputs:
        """The rows of one or more requests, in order."""
        return Inputs(
            dense=np.concatenate([inputs.dense for inputs in several]),
            ids=tuple(np.concatenate(ids) for ids in zip(*(inputs.ids for inputs in several), strict=True)),
            lengths=np.concatenate([inputs.lengths for inputs in several], axis=1),
            unseen=np.sum([inputs.unseen for inputs in several], axis=0),
        )


@dataclass(frozen=True)
class Prediction:
    """Probabilities of B rows."""

    probabilities: npt.NDArray[np.float32]  # (B,)
    unseen: dict[str, int]  # the number of unknown raw values, for each feature that has any


class Predictor:
    """A package in memory; threads may share it."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.manifest = manifest
        self.spec: dict[str, Any] = manifest["spec"]
        self.features: tuple[str, ...] = tuple(f["name"] for f in (*self.spec["dense"], *self.spec["sparse"]))
        self._names = {*self.features, self.spec["label"]}
        self._defaults = np.array([feature["default"] for feature in self.spec["dense"]]).reshape(-1, 1)
        self._log1p = np.array([feature["log1p"] for feature in self.spec["dense"]], bool)
        self._lookups = [_lookup(path, feature) for feature in self.spec["sparse"]]
        self._model = _load_model(path, manifest["versions"])

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The predictor of a package folder; raises ValueError when it is no package, or when a file has changed."""
        return cls(Path(path), _checked_manifest(Path(path)))

    def __call__(self, columns: Mapping[str, Any]) -> Prediction:
        """Probabilities of rows of raw values; see ``encode`` for their form."""
        return self.run(self.encode(columns))

    def run(self, inputs: Inputs) -> Prediction:
        """Probabilities of encoded rows."""
        if not len(inputs):
            return Prediction(np.empty(0, np.float32), {})
        arrays = inputs.dense, np.concatenate(inputs.ids), inputs.lengths.reshape(-1)
        with torch.inference_mode():
            probabilities, unseen = self._model(*map(torch.from_numpy, arrays))
        counts = zip(self.spec["sparse"], (inputs.unseen + unseen.numpy()).tolist(), strict=True)
        return Prediction(probabilities.numpy(), {feature["name"]: count for feature, count in counts if count})

    def encode(self, columns: Mapping[str, Any]) -> Inputs:
        """B rows, from a list, NumPy array or Arrow array of B raw values per feature; None, null and NaN are missing.

        A category that training did not see becomes its feature's unseen id, an id outside the table 0. A label column
        is ignored. Raises ValueError when columns are not those of the spec, or for a value that preparation refuses.
        """
        columns = self._checked(columns)
        rows = len(columns[self.features[0]])
        dense = np.empty((len(self.spec["dense"]), rows))
        for row, feature in zip(dense, self.spec["dense"], strict=True):
            row[:] = _explained(_numbers, columns[feature["name"]], feature["name"], "finite float32 numbers")
        dense = np.where(np.isnan(dense), self._defaults, dense)
        dense[self._log1p] = np.log1p(np.maximum(dense[self._log1p], 0.0)) + 0.0  # -0.0 becomes 0.0
        lengths: npt.NDArray[np.int32] = np.ones((len(self._lookups), rows), np.int32)
        encoded = []
        for row, feature, lookup in zip(lengths, self.spec["sparse"], self._lookups, strict=True):
            column = columns[feature["name"]]
            if feature["multi_hot"]:
                column, row[:] = _explained(_bags, column, feature["name"], "a list of values per row")
            encoded.append(_explained(lookup, column, feature["name"], lookup.holds))
        ids, unseen = zip(*encoded, strict=True)
        return Inputs(dense.T.astype(np.float32, order="C"), ids, lengths, np.array(unseen))

    def _checked(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """The columns of the features, all of the same length."""
        if not isinstance(columns, Mapping):
            raise ValueError(f"columns must be an object: got {_short.repr(columns)}; send the values of each feature")
        absent = [name for name in self.features if name not in columns]
        unknown = [name for name in columns if name not in self._names]
        if absent or unknown:
            raise ValueError(
                f"columns must be the features of {self.spec['name']!r}: got no {_short.repr(absent)} and unknown "
                f"{_short.repr(unknown)}; send all features and nothing else, with null for a missing value"
            )
        checked = {name: _explained(_column, columns[name], name, "one value per row") for name in self.features}
        sizes = {len(column): name for name, column in checked.items()}
        if len(sizes) > 1:
            found = ", ".join(f"{size} of {name!r}" for size, name in sizes.items())
            raise ValueError(f"features must have one value per row: got {found}; send null for a missing value")
        return checked


@dataclass(frozen=True)
class _Lookup:
    """Maps the raw values of one sparse feature to ids, and counts unknown values."""

    find: Callable[[Any], Ids]  # ids of an int64 array or an Arrow array of text; _UNKNOWN for an unknown value
    unseen: int  # the id of unknown values
    text: bool | None  # whether the values are text; None means that they may be
    holds: str  # which values are allowed, in words

    def __call__(self, column: Any) -> tuple[Ids, int]:
        values = _categories(column)
        if values.null_count == len(values):
            return np.full(len(values), MISSING), 0
        is_text = _is_text(values.type)
        if self.text not in (None, is_text):
            raise _MalformedError(values.drop_null()[0].as_py())
        valid, data = values.buffers()[:2]
        ids = self.find(values if is_text else np.frombuffer(data, np.int64, len(values), 8 * values.offset))
        if values.null_count:
            bits = np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")[values.offset :]
            ids *= bits[: len(ids)]  # null becomes MISSING
        unknown = ids == _UNKNOWN
        ids[unknown] = self.unseen
        return ids, int(np.count_nonzero(unknown))


def _lookup(path: Path, feature: Mapping[str, Any]) -> _Lookup:
    if feature["encoding"] == "id":
        return _Lookup(partial(_find_id, feature["rows"]), unseen=MISSING, text=None, holds=_WHOLE)
    if feature["encoding"] == "hash":
        return _Lookup(partial(_find_hash, feature["rows"]), unseen=MISSING, text=None, holds=_WHOLE_OR_TEXT)
    values = pq.read_table(path / "vocab" / f"{feature['name']}.parquet")["value"].combine_chunks()
    if not len(values):  # the type of an empty vocabulary is not known
        return _Lookup(lambda each: np.full(len(each), _UNKNOWN), unseen=UNSEEN, text=None, holds=_WHOLE_OR_TEXT)
    if _is_text(values.type):
        ids = {value: FIRST + place for place, value in enumerate(values.to_pylist())}
        return _Lookup(partial(_find_text, ids), unseen=UNSEEN, text=True, holds="texts")
    order = values.to_numpy().argsort()
    find = partial(_find_integer, values.to_numpy()[order], FIRST + order)
    return _Lookup(find, unseen=UNSEEN, text=False, holds=_WHOLE)


def _find_id(rows: int, values: Any) -> Ids:
    if not isinstance(values, np.ndarray):
        texts = values.fill_null("0").to_pylist()
        for text in texts:
            if not _ID.fullmatch(text):
                raise _MalformedError(text)
        values = np.array([int(text) for text in texts])
    return np.where((values >= 0) & (values < rows), values, _UNKNOWN)


def _find_text(ids: dict[str, int], values: Any) -> Ids:
    return np.fromiter((ids.get(value, _UNKNOWN) for value in values.to_pylist()), np.int64, len(values))


def _find_integer(ascending: Ids, ids: Ids, values: Ids) -> Ids:
    order = values.argsort()  # searching in ascending order finds neighbours in the processor's cache
    values = values[order]
    at = ascending.searchsorted(values, side="right") - 1  # -1 for values below all, which points at the greatest
    matched = np.empty_like(order)
    matched[order] = np.where(ascending[at] == values, ids[at], _UNKNOWN)
    return matched


def _find_hash(rows: int, values: Any) -> Ids:
    state = values.astype(np.uint64) if isinstance(values, np.ndarray) else _fnv1a(values)
    state = state + np.uint64(0x9E3779B97F4A7C15)  # here the finaliser of SplitMix64 begins
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((state ^ (state >> np.uint64(31))) % np.uint64(rows - 1)).astype(np.int64) + 1


def _fnv1a(words: Any) -> npt.NDArray[np.uint64]:
    """FNV-1a of UTF-8 bytes: byte by byte for all words at once while many words are left, then word by word."""
    words = words.cast(pa.large_string())
    _, offsets, data = words.buffers()
    starts = np.frombuffer(offsets, np.int64)[words.offset : words.offset + len(words) + 1]
    lengths, octets = np.diff(starts), np.frombuffer(data or b"", np.uint8)
    state = np.full(len(words), _FNV_OFFSET, np.uint64)
    position, longer = 0, np.flatnonzero(lengths)
    while len(longer) > 32:  # with fewer words, plain Python is as fast as arrays
        state[longer] = (state[longer] ^ octets[starts[longer] + position]) * np.uint64(_FNV_PRIME)
        position += 1
        longer = longer[lengths[longer] > position]
    for i in longer:
        word = int(state[i])
        for octet in octets[starts[i] + position : starts[i + 1]].tolist():
            word = (word ^ octet) * _FNV_PRIME % 2**64
        state[i] = word
    return state


class _MalformedError(Exception):
    """Raised with a value that is not allowed for its feature."""


def _explained(convert: Callable[[Any], Any], column: Any, name: str, holds: str) -> Any:
    try:
        return convert(column)
    except _MalformedError as error:
        found = _short.repr(error.args[0])
        raise ValueError(f"feature {name!r} must hold {holds}: got {found}; correct it, or send null instead") from None


def _column(column: Any) -> Any:
    """The column as a list, a NumPy array or an Arrow array."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if isinstance(column, pa.DictionaryArray):
        return column.dictionary_decode()
    if isinstance(column, pa.NullArray):
        return column.to_pylist()
    if isinstance(column, (list, tuple, pa.Array)) or (isinstance(column, np.ndarray) and column.ndim):
        return column
    raise _MalformedError(column)


def _array(column: Any) -> Any:
    """An Arrow array of numbers, text or only nulls; a missing value is null."""
    array = column if isinstance(column, pa.Array) else _from_python(column)
    if array is None:
        last = bisect_left(range(len(column)), x=True, key=lambda last: _from_python(column[: last + 1]) is None)
        _array(list(column[:last]))  # raises if an earlier value is wrong
        raise _MalformedError(column[last])
    if not (_is_text(array.type) or any(is_number(array.type) for is_number in _NUMBER_TYPES)):
        raise _MalformedError(array.type if array is column else next(value for value in column if value is not None))
    return array


def _from_python(column: Any) -> Any:
    """An Arrow array; None when the values have no type in common."""
    with suppress(pa.ArrowException, OverflowError, TypeError, ValueError):
        return pa.array(column, from_pandas=True)
    if all(value is None or (type(value) is int and 0 <= value < 2**64) for value in column):
        return pa.array(column, pa.uint64())  # Arrow does not infer this type by itself
    return None


def _is_text(kind: Any) -> bool:
    return bool(types.is_string(kind) or types.is_large_string(kind))


def _numbers(column: Any) -> npt.NDArray[np.float64]:
    """Numbers or text as float64; a missing value is NaN."""
    try:
        array = _array(column)
        if _is_text(array.type):
            values = np.array([_number(text) for text in array.to_pylist()])
        else:
            values = np.array(array.to_numpy(zero_copy_only=False), np.float64)
    except _MalformedError:
        if isinstance(column, pa.Array):
            raise
        values = np.array([_number(value) for value in column])  # integers of any size, or numbers mixed with text
    infinite = values[np.abs(values) >= _FLOAT32_END]
    if len(infinite):
        raise _MalformedError(infinite[0].item())
    return values


def _number(value: Any) -> float:
    if value is None or (isinstance(value, str) and not value):
        return np.nan
    with suppress(OverflowError):
        if isinstance(value, (int, float)) or (isinstance(value, str) and _NUMBER.fullmatch(value)):
            return float(value)
    raise _MalformedError(value)


def _categories(column: Any) -> Any:
    """An Arrow array of int64, text or only nulls; a missing value is null."""
    values = _array(column)
    if values.type == pa.int64() or _is_text(values.type) or types.is_null(values.type):
        return values
    if types.is_integer(values.type) or types.is_boolean(values.type):
        return values.cast(pa.int64(), safe=False)  # uint64 keeps its 64 bits
    numbers = np.array(values.to_numpy(zero_copy_only=False), np.float64)  # pandas stores integers with gaps as floats
    missing = np.isnan(numbers)
    broken = numbers[~missing & ~((np.floor(numbers) == numbers) & (np.abs(numbers) < 2.0**53))]
    if len(broken):
        raise _MalformedError(broken[0].item())
    return pa.array(np.where(missing, 0, numbers).astype(np.int64), mask=missing)


def _bags(column: Any) -> tuple[Any, Any]:
    """The values of all lists, and the length of each list; a missing list has length 0."""
    if isinstance(column, pa.Array):
        if not (types.is_list(column.type) or types.is_large_list(column.type)):
            raise _MalformedError(column.type)
        return _column(column.flatten()), column.value_lengths().fill_null(0).to_numpy()
    bags = [() if value is None or (isinstance(value, float) and np.isnan(value)) else value for value in column]
    for bag in bags:
        if not isinstance(bag, (list, tuple, np.ndarray)):
            raise _MalformedError(bag)
    return list(chain.from_iterable(bags)), [len(bag) for bag in bags]


def _checked_manifest(path: Path) -> dict[str, Any]:
    """The contents of package.json, after every file was compared with its checksum there."""
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_bytes())
        form = manifest["format"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"folder {path} must hold a {MANIFEST}: got {error!r}; name a package's folder") from error
    if form != FORMAT:
        raise ValueError(f"format of package {path} must be {FORMAT}: got {form!r}; use the package's predictor.py")
    for name, sha256 in manifest["files"].items():
        found = "no file"
        if (path / name).is_file():
            with (path / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            raise ValueError(f"{path / name} must have sha256 {sha256}: got {found}; copy the package again")
    return manifest


def _load_model(path: Path, versions: Mapping[str, str]) -> Any:
    try:
        import fbgemm_gpu  # noqa: F401  # registers the operators that the model calls

        return torch.jit.load(str(path / "model.pt"), map_location="cpu").eval()
    except (ImportError, OSError, RuntimeError) as error:
        found, wanted = str(error).strip().splitlines()[0], f"{versions['torch']} and {versions['fbgemm_gpu']}"
        raise ValueError(f"model of {path} must load: got {found!r}; install torch and fbgemm_gpu {wanted}") from error


def main(arguments: list[str]) -> None:
    """Print the predictions for a JSON file of rows, with the package that contains this file."""
    if len(arguments) != 1:
        sys.exit(__doc__)
    try:
        rows = json.loads(sys.stdin.read() if arguments[0] == "-" else Path(arguments[0]).read_text(encoding="utf-8"))
        columns = {name: [row[name] for row in rows] for name in dict.fromkeys(chain.from_iterable(rows))}
        prediction = Predictor.load(Path(__file__).parent)(columns)
    except (KeyError, TypeError) as error:
        sys.exit(f"error: {arguments[0]} must be a list of objects with the same names: got {error!r}; correct it")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(json.dumps({"probabilities": prediction.probabilities.tolist(), "unseen": prediction.unseen}))


if __name__ == "__main__":
    main(sys.argv[1:])
