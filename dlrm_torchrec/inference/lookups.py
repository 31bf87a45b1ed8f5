"""Ids of canonical categories: of vocabularies, of hashes, and of values that are ids already.

A package holds a copy of this file, which needs only numpy and pyarrow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dlrm_torchrec.raw_values import (
    TextForm,
    categories,
    hours,
    kinds,
    number_categories,
    squared_logs,
    vocabulary_digest,
    weekdays,
)

Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

MISSING, UNSEEN, FIRST = 0, 1, 2  # ids of a vocabulary; 0 means missing in the other encodings too
MANAGED_IDS = 2**63 - 1  # the range of hashes that are folded for a table which manages its ids
_UNKNOWN = -1  # marks an unknown value until its id is chosen
_CATEGORIES: dict[str, Callable[..., Any]] = {
    "number": number_categories,
    "squared_log": squared_logs,
    "hour": hours,
    "weekday": weekdays,
}
_FNV_OFFSET, _FNV_PRIME = 0xCBF29CE484222325, 0x100000001B3


class Categories(NamedTuple):
    """N canonical values: whole numbers, texts, or missing."""

    integers: Ids
    is_integer: Mask
    texts: Any  # an Arrow array of strings
    is_text: Mask

    @classmethod
    def of_part(cls, part: str, parts: tuple[Any, ...]) -> Categories:
        """The categories that are a ``part`` of what was read: of categories themselves, of numbers or of times."""
        return cls(*parts) if part == "value" else cls.of(_CATEGORIES[part](*parts))

    @classmethod
    def of(cls, values: Any) -> Categories:
        """The categories in an Arrow array of int64 or of text that may hold whole numbers."""
        integers, texts = kinds(values)
        return cls(
            integers.fill_null(0).to_numpy(),
            integers.is_valid().to_numpy(zero_copy_only=False),
            texts,
            texts.is_valid().to_numpy(zero_copy_only=False),
        )


def read_categories(values: Any, form: TextForm) -> tuple[Any, ...]:
    """The fields of the Categories of raw values, and the mask of what is malformed."""
    found, malformed = categories(values, form)
    return *Categories.of(found), malformed


class Lookup(NamedTuple):
    """Maps categories to ids, and counts unknown ones; the functions give ``_UNKNOWN`` for these."""

    find_integers: Callable[[Ids], Ids]
    find_texts: Callable[[Any], Ids]
    unseen: int  # the id of unknown values

    def __call__(self, values: Categories) -> tuple[Ids, int]:
        if values.is_integer.all():
            ids = self.find_integers(values.integers)
        elif values.is_text.all():
            ids = self.find_texts(values.texts)
        else:
            ids = np.where(values.is_integer, self.find_integers(values.integers), MISSING)
            if values.is_text.any():
                ids = np.where(values.is_text, self.find_texts(values.texts), ids)
        unknown = ids == _UNKNOWN
        num_unknown = int(np.count_nonzero(unknown))
        if num_unknown:
            ids[unknown] = self.unseen
        return ids, num_unknown


def id_lookup(rows: int) -> Lookup:
    """Ids in [0, rows) are themselves."""
    return Lookup(partial(_find_id, rows), _find_nothing, unseen=MISSING)


class Vocabulary(NamedTuple):
    """The values of a vocabulary in the order of their ids: an Arrow array, and what finds them."""

    values: Any
    texts: dict[str, int]  # the ids of those that are texts
    lookup: Lookup
    digest: str

    @classmethod
    def of(cls, values: Any) -> Vocabulary:
        known = Categories.of(values)
        ids = {text: FIRST + place for place, text in enumerate(known.texts.to_pylist()) if text is not None}
        return cls._with(values, known, ids)

    def changed(self, values: Any, places: Ids) -> Vocabulary:
        """The vocabulary of ``values``, which differ from these only at ``places`` and at the end.

        Copying a dictionary keeps other threads waiting for a tenth of the time in which one is built.
        """
        ids, known = self.texts.copy(), Categories.of(values)
        for text in Categories.of(self.values.take(places[places < len(self.values)])).texts.to_pylist():
            ids.pop(text, None)
        for text in Categories.of(self.values[len(values) :]).texts.to_pylist():
            ids.pop(text, None)
        for place, text in zip(places.tolist(), known.texts.take(places).to_pylist(), strict=True):
            if text is not None:
                ids[text] = FIRST + place
        return self._with(values, known, ids)

    @classmethod
    def _with(cls, values: Any, known: Categories, ids: dict[str, int]) -> Vocabulary:
        places = np.flatnonzero(known.is_integer)
        at = places[known.integers[places].argsort()]
        find_integers = partial(_find_integer, known.integers[at], FIRST + at) if len(at) else _find_nothing
        lookup = Lookup(find_integers, partial(_find_text, ids) if ids else _find_nothing, unseen=UNSEEN)
        return cls(values, ids, lookup, vocabulary_digest([values]))


def _find_nothing(values: Any) -> Ids:
    return np.full(len(values), _UNKNOWN)


def _find_id(rows: int, values: Ids) -> Ids:
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


def hashes(values: Categories) -> npt.NDArray[np.uint64]:
    """A hash of 64 bits (N,) of each category: the finaliser of SplitMix64 of a whole number, or of a text's FNV-1a."""
    state = values.integers.astype(np.uint64)
    if values.is_text.any():
        state = np.where(values.is_text, _fnv1a(values.texts), state)
    return finalised(state + np.uint64(0x9E3779B97F4A7C15))


def finalised(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser (N,) of 64 bits (N,)."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def hashed_ids(values: Sequence[tuple[Categories, int]]) -> list[Ids]:
    """Ids in [1, rows) of the categories of each feature of so many rows; all features are hashed at once."""
    integers, is_integer, texts, is_text = zip(*(each for each, _ in values), strict=True)
    arrays = [np.concatenate(parts) for parts in (integers, is_integer, is_text)]
    joined = Categories(arrays[0], arrays[1], pa.concat_arrays(texts), arrays[2])
    present, state = joined.is_integer | joined.is_text, hashes(joined)
    ids, first = [], 0
    for own_values, rows in values:
        last = first + len(own_values.integers)
        own = (state[first:last] % np.uint64(rows - 1)).astype(np.int64) + 1
        ids.append(np.where(present[first:last], own, MISSING))
        first = last
    return ids


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
