"""Raw rows that will become prepared rows, and the reasons why some rows are malformed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dlrm_torchrec.preparation.readers.spans import Span

Mask = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


class Rejected(NamedTuple):
    """A malformed row: its 1-based number in the file, the reason, and its bytes."""

    number: int
    reason: str
    raw: bytes


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The well-formed rows of one piece of a raw file, in file order, and its malformed rows."""

    numbers: Ints  # (B,) 1-based line number; row number in a Parquet file
    label: npt.NDArray[np.float32]  # (B,)
    dense: npt.NDArray[np.float64]  # (B, D); NaN is missing
    # F Arrow arrays of canonical categories (float64 for buckets), or lists of them; null is missing
    sparse: tuple[Any, ...]
    more_labels: tuple[npt.NDArray[np.float32], ...] = ()  # (B,) each; NaN where a label is missing
    weight: npt.NDArray[np.float32] | None = None  # (B,) of the rows
    id_weights: tuple[Any, ...] = ()  # lists of float32 for each sparse feature with weights, as long as its ids
    also: Mapping[str, Any] = field(default_factory=dict)  # further raw columns, as Arrow arrays
    rejected: tuple[Rejected, ...] = ()
    headers: int = 0  # lines that name the columns
    blanks: int = 0  # empty lines
    damage: str = ""  # set on the last piece of a damaged file
    raw_bytes: int = 0  # of the file that were read for this piece

    def select(self, keep: Mask, **changes: Any) -> Rows:
        """The rows where ``keep`` (B,) holds, with ``changes`` to the other fields."""
        if keep.all():
            return replace(self, **changes)
        return replace(
            self,
            numbers=self.numbers[keep],
            label=self.label[keep],
            dense=self.dense[keep],
            sparse=tuple(column.filter(pa.array(keep)) for column in self.sparse),
            more_labels=tuple(label[keep] for label in self.more_labels),
            weight=None if self.weight is None else self.weight[keep],
            id_weights=tuple(column.filter(pa.array(keep)) for column in self.id_weights),
            also={name: column.filter(pa.array(keep)) for name, column in self.also.items()},
            **changes,
        )


class Reader(Protocol):
    """Reads raw files of one format. The same file gives the same rows on every call, in pieces of any size.

    An interrupted preparation recognises its readers by their ``repr``; the ``repr`` of a dataclass is right for this.
    """

    @property
    def labelled(self) -> bool:
        """Whether the files have a label column; without it, every label is 0."""
        ...

    def __call__(self, path: str, span: Span | None = None) -> Iterator[Rows]:
        """The rows of a file, or of one span of it."""
        ...


class Checks:
    """For each of ``count`` rows, the first reason why it is malformed, if any."""

    def __init__(self, count: int) -> None:
        self._reason = np.zeros(count, dtype=np.int16)  # index into _reasons; 0 means well-formed
        self._reasons = [""]

    def reject(self, bad: Mask, reason: str) -> None:
        """Give ``reason`` to the rows where ``bad`` (B,) is true, unless they have a reason already."""
        new = bad & (self._reason == 0)
        if new.any():
            self._reason[new] = len(self._reasons)
            self._reasons.append(reason)

    @property
    def good(self) -> Mask:
        good: Mask = self._reason == 0
        return good

    def bad(self) -> Iterator[tuple[int, str]]:
        """Index and reason of each malformed row, in order."""
        for index in np.flatnonzero(self._reason):
            yield int(index), self._reasons[self._reason[index]]


def int_buffers(values: Any) -> tuple[Ints, npt.NDArray[np.uint8], int]:
    """The parts of an Arrow array of int64: N numbers, bits that are 0 for nulls, and the place of the first bit."""
    valid, data = values.buffers()
    first = values.offset
    if not values.null_count:
        return values.to_numpy(), np.full(len(values) // 8 + 1, 0xFF, np.uint8), 0
    return np.frombuffer(data, np.int64)[first : first + len(values)], np.frombuffer(valid, np.uint8), first


def text_buffers(values: Any) -> tuple[Ints, npt.NDArray[np.uint8]]:
    """Offsets (N + 1) and UTF-8 bytes of an Arrow array of N large strings, none of them null."""
    _, offsets, data = values.buffers()
    first = values.offset
    return np.frombuffer(offsets, np.int64)[first : first + len(values) + 1], np.frombuffer(data or b"", np.uint8)
