"""Which rows of a raw file go to which split, as a pure function of a row and its number in the file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import accumulate
from typing import Protocol

import numpy as np

from dlrm_torchrec import raw_values
from dlrm_torchrec.datasets.random.counter import words
from dlrm_torchrec.preparation.readers.rows import Ints, Mask, Rows
from dlrm_torchrec.raw_values import TextForm, UnfitTypeError


class Assignment(Protocol):
    """A call maps B rows to indices (B,) into ``splits``, the names of the splits."""

    @property
    def splits(self) -> tuple[str, ...]: ...

    def __call__(self, rows: Rows) -> Ints: ...


@dataclass(frozen=True)
class Whole:
    """Every row goes to one split."""

    split: str

    @property
    def splits(self) -> tuple[str, ...]:
        return (self.split,)

    def __call__(self, rows: Rows) -> Ints:
        return np.zeros_like(rows.numbers)


@dataclass(frozen=True)
class ByHash:
    """Each of the ``shares`` gets a pseudo-random share of the rows; ``rest`` gets the others.

    With ``group``, a raw column, rows with the same value go to the same split, and rows without a value to ``rest``.
    """

    rest: str
    shares: tuple[tuple[str, float], ...]
    group: str = ""
    form: TextForm | None = None  # how the text of ``group`` is written

    def __post_init__(self) -> None:
        _check(self.shares)

    @property
    def splits(self) -> tuple[str, ...]:
        return (*(split for split, _ in self.shares), self.rest)

    def __call__(self, rows: Rows) -> Ints:
        return self.of_groups(rows) if self.group else self.of_numbers(rows.numbers)

    def of_numbers(self, numbers: Ints) -> Ints:
        """The indices for the rows with these numbers, when no group is named."""
        return np.searchsorted(self._ends, words(numbers, 0) / 2.0**64, side="right").astype(np.int64)

    def of_groups(self, rows: Rows) -> Ints:
        """The indices for rows by their group."""
        assert self.form is not None
        try:
            values, _ = raw_values.categories(rows.also[self.group], self.form)
        except UnfitTypeError as error:
            raise ValueError(f"group {self.group!r} must hold categories: got {error}; name another column") from error
        coded = raw_values.texts(values).dictionary_encode()
        uniform = [_uniform(text) for text in coded.dictionary.to_pylist()]
        place = np.append(np.searchsorted(self._ends, uniform, side="right"), len(self.shares))
        found: Ints = place.astype(np.int64)[coded.indices.fill_null(len(uniform)).to_numpy()]
        return found

    @property
    def _ends(self) -> list[float]:
        return list(accumulate(share for _, share in self.shares))


@dataclass(frozen=True)
class ByTime:
    """The latest rows by a raw column of times: ``rest``, then each of the ``shares``, the last one the latest.

    Rows of one time are never parted, and rows without a time go to ``rest``. Preparation finds ``starts``: the first
    microsecond since 1970 of each share.
    """

    rest: str
    shares: tuple[tuple[str, float], ...]
    column: str
    form: TextForm
    starts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check(self.shares)

    @property
    def splits(self) -> tuple[str, ...]:
        return (self.rest, *(split for split, _ in self.shares))

    def __call__(self, rows: Rows) -> Ints:
        times, known = self.times(rows)
        place = np.zeros(len(times), np.int64)
        place[known] = np.searchsorted(self.starts, times[known], side="right")
        return place

    def times(self, rows: Rows) -> tuple[Ints, Mask]:
        """The microseconds since 1970 (B,) of rows, and which of them are known."""
        return times_of(rows, self.column, self.form)

    def starting(self, times: Ints, counts: Ints) -> ByTime:
        """The assignment for rows with these distinct, ascending times, each with the number of its rows.

        Each share begins where the number of rows from there on is closest to what was asked for. Raises ValueError if
        there are too few distinct times.
        """
        if len(times) <= len(self.shares):
            raise ValueError(
                f"time {self.column!r} must have more than {len(self.shares)} distinct values to split by: got "
                f"{len(times)}; name another column, or split at random"
            )
        from_here = np.cumsum(counts[::-1])[::-1]
        starts: list[int] = []
        last = len(times)
        wanted = np.cumsum([share for _, share in reversed(self.shares)]) * from_here[0]
        for i, rows in enumerate(wanted):
            first = len(self.shares) - i  # so that an earlier time is left for each split before
            last = first + int(np.argmin(np.abs(from_here[first:last] - rows)))
            starts.append(int(times[last]))
        return replace(self, starts=tuple(reversed(starts)))


def times_of(rows: Rows, column: str, form: TextForm) -> tuple[Ints, Mask]:
    """The microseconds since 1970 (B,) in a further raw column of rows, and which of them are known."""
    try:
        seconds, _ = raw_values.times(rows.also[column], form)
    except UnfitTypeError as error:
        raise ValueError(f"time {column!r} must hold times: got {error}; name another column") from error
    known = ~np.isnan(seconds)
    return np.where(known, np.round(seconds * 1e6), 0).astype(np.int64), known


def _uniform(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) / 2.0**64


def _check(shares: tuple[tuple[str, float], ...]) -> None:
    values = [share for _, share in shares]
    if min(values, default=0) < 0 or sum(values) >= 1:
        raise ValueError(f"split shares must be at least 0 and sum to less than 1: got {dict(shares)}; lower them")


@dataclass(frozen=True)
class ByPosition:
    """Consecutive parts: each split holds the rows up to its last row number, and ``last`` holds all later rows."""

    parts: tuple[tuple[str, int], ...]
    last: str

    @property
    def splits(self) -> tuple[str, ...]:
        return (*(split for split, _ in self.parts), self.last)

    def __call__(self, rows: Rows) -> Ints:
        return self.of_numbers(rows.numbers)

    def of_numbers(self, numbers: Ints) -> Ints:
        """The indices for the rows with these numbers."""
        return np.searchsorted([end for _, end in self.parts], numbers, side="left").astype(np.int64)


@dataclass(frozen=True)
class LastPart:
    """The last of ``parts`` equal parts of a file is halved into 'val' and 'test'; all other rows are 'train'.

    ``of`` needs the number of lines of the whole file.
    """

    parts: int

    @property
    def splits(self) -> tuple[str, ...]:
        return (*(("train",) if self.parts > 1 else ()), "val", "test")

    def of(self, lines: int) -> ByPosition:
        """The assignment of a file of so many lines."""
        last = lines // self.parts
        before = (("train", lines - last),) if self.parts > 1 else ()
        return ByPosition((*before, ("val", lines - last // 2)), "test")
