"""The ledger of a vocabulary: every value that it remembers, with its count, its id, and when it was last seen.

A prepared folder that can be continued keeps one per table: Parquet with a row per value, numbers before texts, each in
ascending order. It is joined with the counted values of the next window as sorted runs are merged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from heapq import nlargest
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.datasets.prepared.files import NewFile
from dlrm_torchrec.preparation.vocabularies.build import IntValues, TextValues, occurrences, slices
from dlrm_torchrec.preparation.vocabularies.policy import Policy
from dlrm_torchrec.preparation.vocabularies.runs import Run
from dlrm_torchrec.preparation.vocabularies.spool import Scratch, Spool

KINDS = {"numbers": "number", "texts": "text"}  # kinds of values, and their columns
_NUMBERS = {
    "count": np.int64,  # in all windows since it was forgotten; 0 for a value that is forgotten
    "seen": np.int32,  # number of the last window that it was in
    "id": np.int32,  # 0 if it has none
    "evicted": np.int32,  # number of the last window in which it lost its id; 0 if it never did
}
_SCHEMA = pa.schema(
    [("number", pa.int64()), ("text", pa.string()), *((name, pa.from_numpy_dtype(t)) for name, t in _NUMBERS.items())]
)
_BATCH_ROWS = 1 << 16
_EXAMPLES = 3

Mask = npt.NDArray[np.bool_]
Columns = dict[str, npt.NDArray[Any]]


def joined(today: Sequence[Run], before: str, kind: str, *, window: int) -> list[Run]:
    """Runs of the values of a kind that were counted in this window, and of those in the ledger ``before``, if any."""
    runs: list[Run] = [partial(_as_seen, run, window) for run in today]
    return [*runs, partial(_remembered, before, KINDS[kind])] if before else runs


def _as_seen(run: Run, window: int) -> Iterator[pa.Table]:
    for table in run():
        numbers = {"seen": window, "id": 0, "evicted": 0}
        columns = {name: np.full(len(table), value, _NUMBERS[name]) for name, value in numbers.items()}
        yield pa.table({"value": table["value"], "count": table["count"], **columns})


def _remembered(path: str, name: str) -> Iterator[pa.Table]:
    with g_pathmgr.open(path, "rb") as file:
        for batch in pq.ParquetFile(file).iter_batches(_BATCH_ROWS, use_threads=False):
            table = pa.Table.from_batches([batch])
            table = table.filter(table[name].is_valid())
            if len(table):
                yield table.select([name, *_NUMBERS]).rename_columns(["value", *_NUMBERS])


class Ledger:
    """N values in their order, in memory that does not grow with them; a value is known by its place."""

    def __init__(self, scratch: Scratch, policy: Policy) -> None:
        self.values = IntValues(scratch), TextValues(scratch)
        self._policy = policy
        self._columns = {name: Spool(scratch, kind) for name, kind in _NUMBERS.items()}
        self.deserving = Counter[int]()  # how many values that deserve an id have each key
        self.forgotten = Counter[int]()  # how many values without a count lost their id in each window
        self.aged = Sample()  # values that lose their id by age

    def __len__(self) -> int:
        numbers, texts = self.values
        return len(numbers) + len(texts)

    def add(self, kind: str, table: pa.Table) -> None:
        """Take the next values of a kind, with the sums of their counts; values that are too old are forgotten."""
        window, max_age = self._policy.window, self._policy.max_age
        columns = {name: table[name].to_numpy() for name in _NUMBERS}
        old = columns["seen"] <= window - max_age if max_age else np.zeros(len(table), bool)
        lost = old & (columns["id"] > 0)
        before = columns["count"]
        columns["count"] = np.where(old, 0, before)
        columns["id"] = np.where(old, np.int32(0), columns["id"])
        columns["evicted"] = np.where(lost, np.int32(window), columns["evicted"])
        kept = (columns["count"] > 0) | (columns["evicted"] > 0)
        self.aged.add(lost[kept], before[kept], first=len(self))
        values = self.values[list(KINDS).index(kind)]
        values.append(table["value"].filter(pa.array(kept)).combine_chunks())
        columns = {name: column[kept] for name, column in columns.items()}
        for name, column in columns.items():
            self._columns[name].append(column)
        deserves, keys = self.ranked(columns)
        self.deserving.update(occurrences(keys[deserves]))
        self.forgotten.update(occurrences(columns["evicted"][columns["count"] == 0]))

    def ranked(self, columns: Columns) -> tuple[Mask, npt.NDArray[np.int64]]:
        """Which values deserve an id, and keys of which the highest have one if there is not room for all."""
        has_id = columns["id"] > 0
        return has_id | (columns["count"] >= self._policy.min_count), 2 * columns["count"] + has_id

    def pieces(self) -> Iterator[tuple[slice, Columns]]:
        """The columns of all values, piece by piece, with the places of the piece."""
        arrays = {name: spool.array() for name, spool in self._columns.items()}
        for first, part in slices(arrays["count"]):
            places = slice(first, first + len(part))
            yield places, {name: array[places] for name, array in arrays.items()}

    def words(self, places: Sequence[int]) -> tuple[str, ...]:
        """The values at some places as texts."""
        numbers, texts = self.values
        found = []
        for place in places:
            values, at = (numbers, place) if place < len(numbers) else (texts, place - len(numbers))
            found.append(str(values.take(np.array([at], np.int32))[0].as_py()))
        return tuple(found)

    def write(self, file: NewFile, pieces: Iterator[tuple[slice, Columns, Mask]]) -> None:
        """Write the values in the mask of each piece, with the columns of the piece."""
        numbers, texts = self.values
        with pq.ParquetWriter(file, _SCHEMA, use_dictionary=["count", "seen", "evicted"]) as writer:
            for places, columns, kept in pieces:
                at = np.flatnonzero(kept).astype(np.int32) + np.int32(places.start)
                cut = int(np.searchsorted(at, len(numbers)))
                values = [
                    pa.concat_arrays([numbers.take(at[:cut]), pa.nulls(len(at) - cut, pa.int64())]),
                    pa.concat_arrays([pa.nulls(cut, pa.string()), texts.take(at[cut:] - np.int32(len(numbers)))]),
                ]
                arrays = [*values, *(pa.array(columns[name][kept]) for name in _NUMBERS)]
                writer.write_table(pa.Table.from_arrays(arrays, schema=_SCHEMA))


class Sample:
    """Counts values, and keeps the places of the few that were counted most often."""

    def __init__(self) -> None:
        self.total = 0
        self._highest: list[tuple[int, int]] = []  # counts, and places as negative numbers, so that first ones win

    def add(self, chosen: Mask, counts: npt.NDArray[np.int64], *, first: int) -> None:
        """Count the ``chosen`` of the next values, of which the first one has the place ``first``."""
        at = np.flatnonzero(chosen)
        self.total += len(at)
        highest = at[np.argsort(-counts[at], kind="stable")[:_EXAMPLES]]
        new = [(int(counts[i]), -(first + int(i))) for i in highest]
        self._highest = nlargest(_EXAMPLES, [*self._highest, *new])

    @property
    def places(self) -> list[int]:
        """The places of those that were counted most often."""
        return [-place for _, place in self._highest]
