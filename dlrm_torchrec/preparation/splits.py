"""Which rows of a raw file go to which split, as a pure function of the row's number in the file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dlrm_torchrec.datasets.random.counter import words
from dlrm_torchrec.preparation.readers.rows import Ints


class Assignment(Protocol):
    """A call maps 1-based row numbers (B,) to indices into ``splits``, the names of the splits."""

    @property
    def splits(self) -> tuple[str, ...]: ...

    def __call__(self, numbers: Ints) -> Ints: ...


@dataclass(frozen=True)
class Whole:
    """Every row goes to one split."""

    split: str

    @property
    def splits(self) -> tuple[str, ...]:
        return (self.split,)

    def __call__(self, numbers: Ints) -> Ints:
        return np.zeros_like(numbers)


@dataclass(frozen=True)
class ByHash:
    """Each of the ``shares`` gets a pseudo-random share of the rows; ``rest`` gets the others."""

    rest: str
    shares: tuple[tuple[str, float], ...]

    def __post_init__(self) -> None:
        values = [share for _, share in self.shares]
        if min(values, default=0) < 0 or sum(values) >= 1:
            raise ValueError(
                f"split shares must be at least 0 and sum to less than 1: got {dict(self.shares)}; lower them"
            )

    @property
    def splits(self) -> tuple[str, ...]:
        return (*(split for split, _ in self.shares), self.rest)

    def __call__(self, numbers: Ints) -> Ints:
        uniform = words(numbers, 0) / 2.0**64
        return np.searchsorted(np.cumsum([share for _, share in self.shares]), uniform, side="right").astype(np.int64)


@dataclass(frozen=True)
class ByPosition:
    """Consecutive parts: each split holds the rows up to its last row number, and ``last`` holds all later rows."""

    parts: tuple[tuple[str, int], ...]
    last: str

    @property
    def splits(self) -> tuple[str, ...]:
        return (*(split for split, _ in self.parts), self.last)

    def __call__(self, numbers: Ints) -> Ints:
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
