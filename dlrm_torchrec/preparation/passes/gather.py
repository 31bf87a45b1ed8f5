"""Gathers the events of each user, which lie anywhere in prepared rows, into one row per user.

The rows are dealt to as many files as are needed for one of them to fit into memory, by their user. Each file is then
sorted by user and time; events of equal times keep the order of the log.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.datasets.prepared.files import Stored
from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.datasets.prepared.writer import SplitWriter
from dlrm_torchrec.datasets.sequences.stored import USERS, stored_schema
from dlrm_torchrec.preparation.readers.events import MICROS
from dlrm_torchrec.schema import DatasetSpec
from dlrm_torchrec.sequence_schema import ACTION, TIME

_ROW_GROUP_USERS = 4_096
_COPIES = 6  # of a file's rows that sorting them holds in memory
_MOST_FILES = 512
_SAMPLED = 1 << 20  # events at most whose times are kept


@dataclass(frozen=True)
class Gathered:
    """The files of all users, and what windows are cut by."""

    files: list[tuple[Stored, int]]  # with the number of users in each
    events: int
    times: np.ndarray[Any, np.dtype[np.int64]]  # seconds of every k-th event of the log, ascending


def gather(events: Manifest, folder: str, user: str, spec: DatasetSpec, *, output: str, memory_bytes: int) -> Gathered:
    """The gathered events, as rows of ``stored_schema(spec)`` in ``output``.

    Args:
        events: what ``folder`` holds: events in the split 'train', with ids of actions from 2 on
        folder: the prepared events
        user: the feature whose id is the user
        spec: of the histories
        output: the folder to write to
        memory_bytes: memory to use, about
    """
    rows, kind = events.splits["train"].rows, stored_schema(spec)
    row_bytes = 8 * (len(events.spec.sparse) + 1)
    count = min(_MOST_FILES, max(1, -(-rows * row_bytes * _COPIES // memory_bytes)))
    paths = [file.location(folder) for file in events.splits["train"].files]
    every, seen, kept = -(-rows // _SAMPLED), 0, []
    with tempfile.TemporaryDirectory() as scratch:
        places = [Path(scratch, f"{number}.arrow") for number in range(count)]
        with ExitStack() as stack:
            writers: list[Any] = []
            for table in _tables(paths, events.spec):
                if not writers:
                    writers = [stack.enter_context(pa.ipc.new_file(str(place), table.schema)) for place in places]
                kept.append(table[TIME].to_numpy()[-seen % every :: every] // MICROS)
                seen += table.num_rows
                owner = table[user].to_numpy() % count
                order = np.argsort(owner, kind="stable")
                ends = np.searchsorted(owner[order], np.arange(count + 1))
                table = table.take(pa.array(order)).combine_chunks()
                for number, writer in enumerate(writers):
                    writer.write_table(table.slice(ends[number], ends[number + 1] - ends[number]))
        files = []
        for number, place in enumerate(places):
            with SplitWriter(output, USERS, unit=number, schema=kind, row_group_rows=_ROW_GROUP_USERS) as writer:
                with pa.memory_map(str(place)) as source:
                    writer.write(_by_user(pa.ipc.open_file(source).read_all(), user, kind))
                place.unlink()
            files += writer.files
    return Gathered(files, rows, np.sort(np.concatenate(kept)))


def _tables(paths: Sequence[str], spec: DatasetSpec) -> Iterator[pa.Table]:
    """The row groups of files, in order."""
    names = [feature.name for feature in spec.sparse]
    for path in paths:
        with g_pathmgr.open(path, "rb") as file:
            parquet = pq.ParquetFile(file)
            for number in range(parquet.num_row_groups):
                yield parquet.read_row_group(number, columns=names, use_threads=False)


def _by_user(table: pa.Table, user: str, kind: pa.Schema) -> pa.Table:
    """A row for each user of the table, in the order of their ids."""
    users, times = table[user].to_numpy(), table[TIME].to_numpy()
    order = np.lexsort((times, users))  # stable
    users = users[order]
    starts = np.flatnonzero(np.diff(users, prepend=-1))
    offsets = pa.array(np.append(starts, len(users)).astype(np.int32))
    change: dict[str, Callable[[Any], Any]] = {TIME: lambda micros: micros // MICROS, ACTION: lambda ids: ids - 1}
    columns = []
    for field in kind:
        known = field.name in table.column_names  # but for the actions of a log that has none: all events are alike
        values = table[field.name].to_numpy()[order] if known else np.full(len(order), 2)
        if not pa.types.is_list(field.type):
            columns.append(pa.array(values[starts], field.type))
            continue
        values = change.get(field.name, lambda same: same)(values)
        flat = pa.array(values.astype(field.type.value_type.to_pandas_dtype()))
        columns.append(pa.ListArray.from_arrays(offsets, flat, type=field.type))
    return pa.Table.from_arrays(columns, schema=kind)
