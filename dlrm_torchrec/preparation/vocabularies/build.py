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
MAX_VALUES = 2**31 - FIRST  # ids are int32
FREE = np.int32(-1)  # in place of the value of an id that has none


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
                how_many.update(occurrences(often["count"].to_numpy()))
        total = how_many.total()
        if total > MAX_VALUES:
            raise ValueError(f"{list_path} must have at most {MAX_VALUES} values: got {total}; hash this feature")
        ids, order = (scratch.zeros(total, np.int32) for _ in range(2))
        ranks = Ranks(how_many)
        for first, part in slices(counts.array()):
            report(0, 0)
            ids[first : first + len(part)] = FIRST + ranks.of(part)
            order[ids[first : first + len(part)] - FIRST] = np.arange(first, first + len(part), dtype=np.int32)
        digest, stored = write_vocabulary(
            (numbers, texts), ids, order, report, folder=folder, list_path=list_path, table_path=table_path
        )
    return FIRST + total, digest, stored


def read_vocabulary(
    source: str, report: Report, *, folder: str, list_path: str, table_path: str
) -> tuple[int, str, list[Stored]]:
    """Rows, digest and files of a vocabulary that ``build_vocabulary`` wrote to the file ``source``, in memory."""
    with g_pathmgr.open(source, "rb") as stream:
        values = pq.read_table(stream)["value"].combine_chunks()
    with Scratch(None) as scratch:
        both = numbers, texts = IntValues(scratch), TextValues(scratch)
        whole, words = kinds(values)
        ids = []
        for part, target in ((whole, numbers), (words, texts)):
            order = pc.array_sort_indices(part).slice(0, len(part) - part.null_count)
            target.append(part.take(order))
            ids.append((order.to_numpy() + FIRST).astype(np.int32))
        known = np.concatenate(ids)
        places = np.full(len(values), FREE)
        places[known - FIRST] = np.arange(len(known), dtype=np.int32)
        digest, stored = write_vocabulary(
            both, known, places, report, folder=folder, list_path=list_path, table_path=table_path
        )
    return FIRST + len(values), digest, stored


def write_vocabulary(
    values: tuple[IntValues, TextValues],
    ids: Ids,
    order: Ids,
    report: Report,
    *,
    folder: str,
    list_path: str,
    table_path: str,
) -> tuple[str, list[Stored]]:
    """Digest and files, the list of values and the arrays of ``Vocabulary.table``, of whole numbers and then texts.

    ``ids`` (N,) are those of the values, 0 for a value that has none. ``order`` has the place of the value of each id
    from ``FIRST`` on, ``FREE`` for an id without a value.
    """
    numbers, texts = values
    with NewFile(folder, list_path) as file:
        digest = _write_list(file, values, order, report)
    stored = [file.stored]
    for number, array in enumerate([*numbers.table(ids[: len(numbers)]), *texts.table(ids[len(numbers) :])]):
        with NewFile(folder, f"{table_path}-{number}.npy") as file:
            np.lib.format.write_array(file, array)
        stored.append(file.stored)
    return digest, stored


def slices(array: npt.NDArray[Any]) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Pieces of an array that fit the memory, each with the place of its beginning."""
    for first in range(0, len(array), _SLICE_ROWS):
        yield first, array[first : first + _SLICE_ROWS]


def _write_list(file: NewFile, values: tuple[IntValues, TextValues], order: Ids, report: Report) -> str:
    """Write the values at the places ``order`` as one column, null where it is ``FREE``; their digest."""
    numbers, texts = values
    kind = pa.string() if order.max(initial=FREE) >= len(numbers) else pa.int64()

    def pieces() -> Iterator[Any]:
        for _, places in slices(order):
            report(0, 0)
            is_text = places >= len(numbers)
            piece = numbers.take(places[~is_text]).cast(kind)
            if is_text.any():
                piece = pa.concat_arrays([piece, texts.take(places[is_text] - np.int32(len(numbers)))])
                piece = piece.take(pa.array(np.argsort(is_text, kind="stable").argsort()))
            writer.write_table(pa.table({"value": piece}))
            yield piece

    with pq.ParquetWriter(file, pa.schema([("value", kind)])) as writer:
        return vocabulary_digest(pieces())


def occurrences(keys: npt.NDArray[np.int64]) -> dict[int, int]:
    """How often each key occurs."""
    each, numbers = np.unique(keys, return_counts=True)
    return dict(zip(each.tolist(), numbers.tolist(), strict=True))


class Ranks:
    """The ranks of values by falling count, and within a count in their order; ``how_many`` values have each count."""

    def __init__(self, how_many: Mapping[int, int]) -> None:
        self._next, at = {}, 0
        for count in sorted(how_many, reverse=True):
            self._next[count], at = at, at + how_many[count]

    def of(self, counts: npt.NDArray[np.int64]) -> Ids:
        """The ranks (N,) from 0 on of the next N values, which occur ``counts`` times."""
        order = np.argsort(counts, kind="stable")
        ranks = np.empty(len(counts), np.int32)
        each, starts, lengths = np.unique(counts[order], return_index=True, return_counts=True)
        for count, start, length in zip(each.tolist(), starts.tolist(), lengths.tolist(), strict=True):
            ranks[order[start : start + length]] = np.arange(self._next[count], self._next[count] + length)
            self._next[count] += length
        return ranks


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
        """The values at some places, as an Arrow array; null at the place ``FREE``."""
        free = places == FREE
        values = self._values.array()
        return pa.array(values[places] if len(values) else np.zeros(len(places), np.int64), mask=free)

    def table(self, ids: Ids) -> tuple[npt.NDArray[Any], ...]:
        """The hash table of the values with these ids (N,), without those whose id is 0: keys and their ids."""
        slots = int(np.count_nonzero(ids) / LOAD) + 1
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
        """The texts with these ids (N,), 0 for those without one: offsets, UTF-8 bytes, and the ids."""
        return self._offsets.array(), self._bytes.array(), ids
