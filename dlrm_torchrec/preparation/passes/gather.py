"""Gathers the events of each user, which lie anywhere in prepared rows, into one row per user.

The rows are dealt to as many files as are needed for one of them to fit into memory, by their user. Each file is then
sorted by user and time; events of equal times keep the order of the log.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from iopath.common.file_io import g_pathmgr
from numpy.typing import NDArray

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
    """The files of all users."""

    files: list[tuple[Stored, int]]  # with the number of users in each
    events: int
    earlier: float  # mean over all events of the events of the same user before them
    simultaneous: int  # events at the time of another one of the same user, which comes before them in the log


def event_times(events: Manifest, folder: str) -> NDArray[np.int64]:
    """Seconds of every k-th event of the prepared events in ``folder``, ascending; about a million of them."""
    every, seen, kept = -(-events.splits["train"].rows // _SAMPLED), 0, [np.empty(0, np.int64)]
    for table in event_tables(events, folder, [TIME]):
        kept.append(table[TIME].to_numpy()[-seen % every :: every] // MICROS)
        seen += table.num_rows
    return np.sort(np.concatenate(kept))


def event_tables(events: Manifest, folder: str, names: Sequence[str]) -> Iterator[pa.Table]:
    """Some columns of the prepared events in ``folder``, a row group at a time, in order."""
    for stored in events.splits["train"].files:
        with g_pathmgr.open(stored.location(folder), "rb") as file:
            parquet = pq.ParquetFile(file)
            for number in range(parquet.num_row_groups):
                yield parquet.read_row_group(number, columns=list(names), use_threads=False)


def gather(
    events: Manifest,
    folder: str,
    user: str,
    spec: DatasetSpec,
    *,
    new_ids: Mapping[str, NDArray[np.int32]],
    output: str,
    memory_bytes: int,
) -> Gathered:
    """The gathered events, as rows of ``stored_schema(spec)`` in ``output``.

    Args:
        events: what ``folder`` holds: events in the split 'train', with ids of actions from 2 on
        folder: the prepared events
        user: the feature whose id is the user, one for each of them
        spec: of the histories
        new_ids: for each feature whose ids have others in ``spec``, these
        output: the folder to write to
        memory_bytes: memory to use, about
    """
    rows, kind = events.splits["train"].rows, stored_schema(spec)
    row_bytes = 8 * (len(events.spec.sparse) + 1)
    count = min(_MOST_FILES, max(1, -(-rows * row_bytes * _COPIES // memory_bytes)))
    names = [feature.name for feature in events.spec.sparse]
    with tempfile.TemporaryDirectory() as scratch:
        places = [Path(scratch, f"{number}.arrow") for number in range(count)]
        with ExitStack() as stack:
            writers: list[Any] = []
            for table in event_tables(events, folder, names):
                if not writers:
                    writers = [stack.enter_context(pa.ipc.new_file(str(place), table.schema)) for place in places]
                owner = table[user].to_numpy() % count
                order = np.argsort(owner, kind="stable")
                ends = np.searchsorted(owner[order], np.arange(count + 1))
                table = table.take(pa.array(order)).combine_chunks()
                for number, writer in enumerate(writers):
                    writer.write_table(table.slice(ends[number], ends[number + 1] - ends[number]))
        files, pairs, simultaneous = [], 0, 0
        for number, place in enumerate(places):
            with SplitWriter(output, USERS, unit=number, schema=kind, row_group_rows=_ROW_GROUP_USERS) as writer:
                with pa.memory_map(str(place)) as source:
                    users, same = _by_user(pa.ipc.open_file(source).read_all(), user, kind, new_ids)
                    writer.write(users)
                simultaneous += same
                counts = pc.list_value_length(users[TIME]).to_numpy().astype(np.int64)
                pairs += int((counts * (counts - 1) // 2).sum())
                place.unlink()
            files += writer.files
    return Gathered(files, rows, pairs / max(1, rows), simultaneous)


def _by_user(
    table: pa.Table, user: str, kind: pa.Schema, new_ids: Mapping[str, NDArray[np.int32]]
) -> tuple[pa.Table, int]:
    """A row for each user of the table, in the order of their ids, and how many events are ``simultaneous``."""
    users, times = table[user].to_numpy(), table[TIME].to_numpy()
    order = np.lexsort((times, users))  # stable
    users, times = users[order], times[order]
    simultaneous = int(((users[1:] == users[:-1]) & (times[1:] == times[:-1])).sum())
    starts = np.flatnonzero(np.diff(users, prepend=-1))
    offsets = pa.array(np.append(starts, len(users)).astype(np.int32))
    columns = []
    for field in kind:
        known = field.name in table.column_names  # but for the actions of a log that has none: all events are alike
        values = table[field.name].to_numpy()[order] if known else np.full(len(order), 2)
        if field.name in new_ids:
            values = new_ids[field.name][values]
        elif field.name == TIME:
            values = values // MICROS
        elif field.name == ACTION:
            values = values - 1
        if not pa.types.is_list(field.type):
            columns.append(pa.array(values[starts], field.type))
            continue
        flat = pa.array(values.astype(field.type.value_type.to_pandas_dtype()))
        columns.append(pa.ListArray.from_arrays(offsets, flat, type=field.type))
    return pa.Table.from_arrays(columns, schema=kind), simultaneous
