"""Builds the vocabulary of one feature from runs of counted values, in memory that does not grow with it.

The values are read once, in ascending order, and written to unnamed files. The number of values with each count tells
at which id the values of that count begin. So ids can be assigned without sorting by count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dlrm_torchrec.datasets.prepared.files import NewFile, Stored
from dlrm_torchrec.preparation.readers.rows import text_buffers
from dlrm_torchrec.preparation.vocabularies.int_tables import LOAD, insert_ids
from dlrm_torchrec.preparation.vocabularies.runs import Run, merge
from dlrm_torchrec.preparation.vocabularies.spool import Scratch, Spool
from dlrm_torchrec.preparation.vocabularies.vocabulary import FIRST, Ids
from dlrm_torchrec.preparation.work.workers import Report

_SLICE_ROWS = 1 << 16
_MAX_VALUES = 2**31 - FIRST  # ids are int32


def build_vocabulary(
    runs: Sequence[Run],
    report: Report,
    *,
    min_count: int,
    folder: str,
    list_path: str,
    table_path: str,
    scratch_folder: str | None,
) -> tuple[int, str, list[Stored]]:
    """Rows, kind of values and files of the vocabulary of all values that occur ``min_count`` times or more.

    ``list_path`` in ``folder`` then holds the values in id order as the Parquet column ``value``. ``table_path``, with
    a number appended, holds the arrays of ``Vocabulary.table``. Data that does not fit the memory goes to
    ``scratch_folder``.
    """
    with Scratch(scratch_folder) as scratch:
        values, counts, numbers = _spool(runs, min_count, scratch, report)
        total = numbers.total()
        if total > _MAX_VALUES:
            raise ValueError(f"{list_path} must have at most {_MAX_VALUES} values: got {total}; hash this feature")
        ids, order = (scratch.zeros(total, np.int32) for _ in range(2))
        for first, part in _number(counts, numbers):
            report(0, 0)
            ids[first : first + len(part)] = part
            order[part - FIRST] = np.arange(first, first + len(part), dtype=np.int32)
        with NewFile(folder, list_path) as file, pq.ParquetWriter(file, pa.schema([("value", values.type)])) as writer:
            for first in range(0, total, _SLICE_ROWS):
                report(0, 0)
                writer.write_table(pa.table({"value": values.take(order[first : first + _SLICE_ROWS])}))
        stored = [file.stored]
        for number, array in enumerate(values.table(ids)):
            with NewFile(folder, f"{table_path}-{number}.npy") as file:
                np.lib.format.write_array(file, array)
            stored.append(file.stored)
    return FIRST + total, str(values.type) if total else "null", stored


def _spool(
    runs: Sequence[Run], min_count: int, scratch: Scratch, report: Report
) -> tuple[Values, npt.NDArray[np.int64], Counter[int]]:
    """The values that occur often enough, in ascending order, their counts, and how many values have each count."""
    values: Values | None = None
    counts, numbers = Spool(scratch, np.int64), Counter[int]()
    for table in merge(runs, scratch.folder):
        report(0, 0)
        often = table.filter(pc.greater_equal(table["count"], min_count))
        if values is None:
            values = IntValues(scratch) if pa.types.is_integer(table["value"].type) else TextValues(scratch)
        values.append(often["value"].combine_chunks())
        counts.append(often["count"].to_numpy())
        numbers.update(_numbers(often["count"].to_numpy()))
    return values or TextValues(scratch), counts.array(), numbers


def _numbers(counts: npt.NDArray[np.int64]) -> dict[int, int]:
    """How often each count occurs."""
    each, numbers = np.unique(counts, return_counts=True)
    return dict(zip(each.tolist(), numbers.tolist(), strict=True))


def _number(counts: npt.NDArray[np.int64], numbers: Counter[int]) -> Iterator[tuple[int, Ids]]:
    """Slices of the ids of values in ascending order, each with its start; ``counts`` (N,) tells how often each occurs.

    ``numbers`` tells how many values have each count. The smallest ids go to the highest counts, and within a count to
    the smallest values.
    """
    next_id, at = {}, FIRST
    for count in sorted(numbers, reverse=True):
        next_id[count], at = at, at + numbers[count]
    for first in range(0, len(counts), _SLICE_ROWS):
        part = counts[first : first + _SLICE_ROWS]
        order = np.argsort(part, kind="stable")
        ids = np.empty(len(part), np.int32)
        each, starts, lengths = np.unique(part[order], return_index=True, return_counts=True)
        for count, start, length in zip(each.tolist(), starts.tolist(), lengths.tolist(), strict=True):
            ids[order[start : start + length]] = np.arange(next_id[count], next_id[count] + length)
            next_id[count] += length
        yield first, ids


class Values(Protocol):
    """Distinct values in files; they are appended in ascending order."""

    type: pa.DataType

    def append(self, values: Any) -> None: ...

    def take(self, positions: Ids) -> Any:
        """The values at some positions, as an Arrow array."""
        ...

    def table(self, ids: Ids) -> tuple[npt.NDArray[Any], ...]:
        """``Vocabulary.table`` of values with these ids (N,)."""
        ...


class IntValues:
    """Int64 values, which a hash table looks up."""

    type = pa.int64()

    def __init__(self, scratch: Scratch) -> None:
        self._scratch, self._values = scratch, Spool(scratch, np.int64)

    def append(self, values: Any) -> None:
        self._values.append(values.to_numpy())

    def take(self, positions: Ids) -> Any:
        return pa.array(self._values.array()[positions])

    def table(self, ids: Ids) -> tuple[npt.NDArray[Any], ...]:
        slots = int(len(ids) / LOAD) + 1
        keys = self._scratch.zeros(slots, np.int64)
        slot_ids = self._scratch.zeros(slots, np.int32)
        insert_ids(self._values.array(), ids, keys, slot_ids)
        return keys, slot_ids


class TextValues:
    """Strings, which bisection looks up."""

    type = pa.string()

    def __init__(self, scratch: Scratch) -> None:
        self._offsets, self._bytes, self._end = Spool(scratch, np.int64), Spool(scratch, np.uint8), 0
        self._offsets.append(np.zeros(1))

    def append(self, values: Any) -> None:
        offsets, data = text_buffers(values.cast(pa.large_string()))
        self._bytes.append(data[offsets[0] : offsets[-1]])
        self._offsets.append(offsets[1:] - offsets[0] + self._end)
        self._end += int(offsets[-1] - offsets[0])

    def take(self, positions: Ids) -> Any:
        offsets, data = self._offsets.array(), self._bytes.array()
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
        words = pa.Array.from_buffers(pa.large_string(), len(offsets) - 1, buffers)
        return words.take(pa.array(positions)).cast(pa.string())

    def table(self, ids: Ids) -> tuple[npt.NDArray[Any], ...]:
        return self._offsets.array(), self._bytes.array(), ids
