"""Builds the vocabulary of one feature from runs of counted values, in memory that does not grow with it.

The values are read once, in ascending order, and written to unnamed files. The number of values with each count tells
at which id the values of that count begin. So ids can be assigned without sorting by count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.datasets.prepared.files import NewFile, Stored
from dlrm_torchrec.preparation.readers.rows import text_buffers
from dlrm_torchrec.preparation.vocabularies.int_tables import LOAD, insert_ids
from dlrm_torchrec.preparation.vocabularies.runs import Run, merge
from dlrm_torchrec.preparation.vocabularies.spool import Scratch, Spool
from dlrm_torchrec.preparation.vocabularies.vocabulary import FIRST, Ids
from dlrm_torchrec.preparation.work.workers import Report
from dlrm_torchrec.raw_values import kinds, vocabulary_digest

_SLICE_ROWS = 1 << 16
_MAX_VALUES = 2**31 - FIRST  # ids are int32


def build_vocabulary(
    runs: Mapping[str, Sequence[Run]],
    report: Report,
    *,
    min_count: int,
    folder: str,
    list_path: str,
    table_path: str,
    scratch_folder: str | None,
) -> tuple[int, str, list[Stored]]:
    """Rows, digest and files of the vocabulary of all values that occur ``min_count`` times or more.

    ``runs`` are those of ``numbers`` and of ``texts``. ``list_path`` in ``folder`` then holds the values in id order as
    the Parquet column ``value``: int64, or text if any value is no whole number. ``table_path``, with a number
    appended, holds the arrays of ``Vocabulary.table``. Data that does not fit the memory goes to ``scratch_folder``.
    """
    with Scratch(scratch_folder) as scratch:
        numbers, texts = IntValues(scratch), TextValues(scratch)
        counts, how_many = Spool(scratch, np.int64), Counter[int]()
        for kind, values in (("numbers", numbers), ("texts", texts)):
            for table in merge(runs.get(kind, []), scratch.folder):
                report(0, 0)
                often = table.filter(pc.greater_equal(table["count"], min_count))
                values.append(often["value"].combine_chunks())
                counts.append(often["count"].to_numpy())
                how_many.update(_numbers(often["count"].to_numpy()))
        total = how_many.total()
        if total > _MAX_VALUES:
            raise ValueError(f"{list_path} must have at most {_MAX_VALUES} values: got {total}; hash this feature")
        ids, order = (scratch.zeros(total, np.int32) for _ in range(2))
        for first, part in _number(counts.array(), how_many):
            report(0, 0)
            ids[first : first + len(part)] = part
            order[part - FIRST] = np.arange(first, first + len(part), dtype=np.int32)
        with NewFile(folder, list_path) as file:
            digest = _write_list(file, (numbers, texts), order, report)
        arrays = [*numbers.table(ids[: len(numbers)]), *texts.table(ids[len(numbers) :])]
        stored = [file.stored, *_write_table(arrays, folder, table_path)]
    return FIRST + total, digest, stored


def read_vocabulary(
    source: str, report: Report, *, folder: str, list_path: str, table_path: str
) -> tuple[int, str, list[Stored]]:
    """Rows, digest and files of a vocabulary that ``build_vocabulary`` wrote to the file ``source``, in memory."""
    with g_pathmgr.open(source, "rb") as stream:
        values = pq.read_table(stream)["value"].combine_chunks()
    with Scratch(None) as scratch:
        numbers, texts = IntValues(scratch), TextValues(scratch)
        whole, words = kinds(values)
        ids = []
        for part, target in ((whole, numbers), (words, texts)):
            order = pc.array_sort_indices(part).slice(0, len(part) - part.null_count)
            target.append(part.take(order))
            ids.append((order.to_numpy() + FIRST).astype(np.int32))
        place = np.argsort(np.concatenate(ids)).astype(np.int32)
        with NewFile(folder, list_path) as file:
            digest = _write_list(file, (numbers, texts), place, report)
        stored = [file.stored, *_write_table([*numbers.table(ids[0]), *texts.table(ids[1])], folder, table_path)]
    return FIRST + len(values), digest, stored


def _write_table(arrays: Sequence[npt.NDArray[Any]], folder: str, path: str) -> Iterator[Stored]:
    """Write the arrays of ``Vocabulary.table``."""
    for number, array in enumerate(arrays):
        with NewFile(folder, f"{path}-{number}.npy") as file:
            np.lib.format.write_array(file, array)
        yield file.stored


def _write_list(file: NewFile, values: tuple[IntValues, TextValues], order: Ids, report: Report) -> str:
    """Write the values at the places ``order``, of whole numbers and then of texts, as one column; their digest."""
    numbers, texts = values
    kind = pa.string() if len(texts) else pa.int64()

    def pieces() -> Iterator[Any]:
        for first in range(0, len(order), _SLICE_ROWS):
            report(0, 0)
            places = order[first : first + _SLICE_ROWS]
            is_text = places >= len(numbers)
            piece = numbers.take(places[~is_text]).cast(kind)
            if is_text.any():
                piece = pa.concat_arrays([piece, texts.take(places[is_text] - np.int32(len(numbers)))])
                piece = piece.take(pa.array(np.argsort(is_text, kind="stable").argsort()))
            writer.write_table(pa.table({"value": piece}))
            yield piece

    with pq.ParquetWriter(file, pa.schema([("value", kind)])) as writer:
        return vocabulary_digest(pieces())


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


class IntValues:
    """Distinct int64 values, which a hash table looks up."""

    def __init__(self, scratch: Scratch) -> None:
        self._scratch, self._values, self._count = scratch, Spool(scratch, np.int64), 0

    def __len__(self) -> int:
        return self._count

    def append(self, values: Any) -> None:
        self._values.append(values.to_numpy())
        self._count += len(values)

    def take(self, places: Ids) -> Any:
        """The values at some places, as an Arrow array."""
        return pa.array(self._values.array()[places])

    def table(self, ids: Ids) -> tuple[npt.NDArray[Any], ...]:
        """The hash table of the values with these ids (N,): keys and their ids."""
        slots = int(len(ids) / LOAD) + 1
        keys = self._scratch.zeros(slots, np.int64)
        slot_ids = self._scratch.zeros(slots, np.int32)
        insert_ids(self._values.array(), ids, keys, slot_ids)
        return keys, slot_ids


class TextValues:
    """Distinct texts, appended in ascending order, which bisection looks up."""

    def __init__(self, scratch: Scratch) -> None:
        self._offsets, self._bytes, self._end = Spool(scratch, np.int64), Spool(scratch, np.uint8), 0
        self._offsets.append(np.zeros(1))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, values: Any) -> None:
        offsets, data = text_buffers(values.cast(pa.large_string()))
        self._bytes.append(data[offsets[0] : offsets[-1]])
        self._offsets.append(offsets[1:] - offsets[0] + self._end)
        self._end += int(offsets[-1] - offsets[0])
        self._count += len(values)

    def take(self, places: Ids) -> Any:
        """The texts at some places, as an Arrow array."""
        offsets, data = self._offsets.array(), self._bytes.array()
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
        words = pa.Array.from_buffers(pa.large_string(), len(offsets) - 1, buffers)
        return words.take(pa.array(places)).cast(pa.string())

    def table(self, ids: Ids) -> tuple[npt.NDArray[Any], ...]:
        """The texts with these ids (N,): offsets, UTF-8 bytes, and the ids."""
        return self._offsets.array(), self._bytes.array(), ids
