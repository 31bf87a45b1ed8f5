"""Sorted runs of counted values on disk, and their merge, so that a vocabulary may outgrow the memory.

A run is a part of a file: an Arrow stream with the columns ``value``, distinct and ascending, and ``count``.
"""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.preparation.vocabularies.counting import sum_counts

FAN_IN = 128  # runs that are merged at a time; each is an open file and a batch in memory
_BATCH_BYTES = 1 << 18
_MERGED_BYTES = 1 << 23  # held in memory before complete values are yielded

Run = Callable[[], Iterator[pa.Table]]  # reads the run from its beginning


def write_run(file: Any, tables: Iterable[pa.Table]) -> None:
    """Append tables, whose values continue from one to the next, to a file that is open for writing."""
    writer = None
    for table in tables:
        if writer is None:
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            writer = pa.ipc.new_stream(file, table.schema, options=options)
        writer.write_table(table, max_chunksize=max(1, _BATCH_BYTES * table.num_rows // max(1, table.nbytes)))
    if writer is not None:
        writer.close()


def open_run(path: str, start: int) -> Iterator[pa.Table]:
    """The batches of the run that begins at byte ``start`` of a file."""
    with g_pathmgr.open(path, "rb") as file:
        file.seek(start)
        yield from _batches(file)


def merge(runs: Sequence[Run], scratch: str | None = None, fan_in: int = FAN_IN) -> Iterator[pa.Table]:
    """Tables in ascending order that hold each value of the runs once, with the sum of its counts.

    All runs have one type of value. More than ``fan_in`` runs are first merged in groups, through unnamed files in the
    folder ``scratch``.
    """
    while len(runs) > fan_in:
        groups = [runs[i : i + fan_in] for i in range(0, len(runs), fan_in)]
        runs = [_spill(_merge(group), scratch) for group in groups]
    return _merge(runs)


def _merge(runs: Sequence[Run]) -> Iterator[pa.Table]:
    readers = [run() for run in runs]
    waiting: list[pa.Table] = []
    known: list[tuple[Any, int]] = []  # a heap of (last value read, run) for each run that may have more

    def read(number: int) -> int:
        piece = next(readers[number], None)
        if piece is None:
            return 0
        waiting.append(piece)
        heapq.heappush(known, (piece["value"][-1].as_py(), number))
        return int(piece.nbytes)

    held = sum(read(number) for number in range(len(readers)))
    while known or waiting:
        while known:
            held += read(heapq.heappop(known)[1])  # the run whose last value is the smallest
            if held >= _MERGED_BYTES:
                break
        if not waiting:
            return
        merged = sum_counts(pa.concat_tables(waiting))
        # All runs are read up to the smallest of the last values, so the sums are complete up to there.
        complete = pc.sum(pc.less_equal(merged["value"], known[0][0])).as_py() if known else len(merged)
        if complete:
            yield merged.slice(0, complete)
        waiting = [merged.slice(complete)] if complete < len(merged) else []
        held = sum(piece.nbytes for piece in waiting)


def _spill(tables: Iterator[pa.Table], scratch: str | None) -> Run:
    file = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115  # closed after it is read
    write_run(file, tables)
    return partial(_reread, file)


def _reread(file: IO[bytes]) -> Iterator[pa.Table]:
    with file:
        file.seek(0)
        yield from _batches(file)


def _batches(file: IO[bytes]) -> Iterator[pa.Table]:
    for batch in pa.ipc.open_stream(file):
        yield pa.Table.from_batches([batch])
