"""Prepared files of histories: a row per user, with lists of events. A user may also write them by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from iopath.common.file_io import g_pathmgr
from numpy.typing import NDArray

from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.datasets.prepared.remote import random_access
from dlrm_torchrec.datasets.sequences.log import EventLog, Ints, history_of
from dlrm_torchrec.datasets.sequences.samples import Window
from dlrm_torchrec.schema import DatasetSpec
from dlrm_torchrec.sequence_schema import ACTION, TIME

USERS = "users"  # the one split of such a folder: splits of samples are windows of time over the same users


def stored_schema(spec: DatasetSpec) -> pa.Schema:
    """An id per feature of users; a list per feature and mark of events, of times and of actions; never null."""
    history = history_of(spec)
    ids = {feature.name: pa.int32() if feature.ids <= 1 << 31 else pa.int64() for feature in spec.sparse}
    lists = {TIME: pa.int64(), ACTION: pa.uint8(), **{name: ids[name] for name in history.events}}
    lists |= dict.fromkeys(history.mark_names, pa.int32())
    fields = [(name, ids[name]) for name in history.users(list(ids))]
    fields += [(name, pa.list_(pa.field("element", kind, nullable=False))) for name, kind in lists.items()]
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields])


def read_windows(manifest: Manifest, folder: str) -> dict[str, Window]:
    """The times of the candidates of each split of a prepared folder."""
    windows = {name: Window(*times) for name, times in manifest.windows.items()}
    for needed in ("train", "val"):
        if needed not in windows:
            raise ValueError(
                f"prepared histories must have a window {needed!r} of times in dataset.json: got {sorted(windows)} in "
                f"{folder}; prepare it with a --val_share above 0, or set samples.held_out to last"
            )
    return windows


def read_log(manifest: Manifest, folder: str) -> EventLog:
    """All events of a prepared folder, in memory.

    Raises ValueError, with column and file, if the lists of a user have different lengths, if times descend, or if an
    id or an action is none of the spec.
    """
    history_of(manifest.spec)
    if USERS not in manifest.splits:
        raise ValueError(
            f"prepared histories must have the split {USERS!r}: got {sorted(manifest.splits)} in {folder}; prepare the "
            "folder with data/events/prepare.py"
        )
    parts = [_read(file.location(folder), manifest.spec) for file in manifest.splits[USERS].files]
    starts = np.concatenate([[0], *(part.pop("starts") for part in parts)]).cumsum()
    columns = {name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])}
    history = history_of(manifest.spec)
    return EventLog(
        starts=starts,
        times=columns[TIME],
        actions=columns[ACTION],
        events={name: columns[name] for name in (*history.events, *history.mark_names)},
        users={name: columns[name] for name in history.users([feature.name for feature in manifest.spec.sparse])},
    )


def _read(path: str, spec: DatasetSpec) -> dict[str, NDArray[Any]]:
    """The columns of a file, and the number of events of each user as ``starts``."""
    with g_pathmgr.open(random_access(path), "rb") as file:
        schema = stored_schema(spec)
        found = pq.ParquetFile(file)
        unfit = [
            field.name
            for field in schema
            if (index := found.schema_arrow.get_field_index(field.name)) < 0
            or not _alike(found.schema_arrow.field(index).type, field.type)
        ]
        if unfit:
            raise ValueError(
                f"file {path} must have the columns {schema.names}, lists of integers but for those of users: got an "
                f"unfit {unfit[0]!r} among {found.schema_arrow.names}; prepare it again or correct the spec"
            )
        table = found.read(columns=schema.names).combine_chunks()
    columns: dict[str, NDArray[Any]] = {}
    lengths: Ints | None = None
    for field in schema:
        array = _chunk(table, field.name)
        if array.null_count:
            raise ValueError(f"column {field.name!r} of {path} must have no nulls: got some; fill them when preparing")
        if pa.types.is_list(field.type):
            own = np.diff(array.offsets.to_numpy().astype(np.int64))
            if lengths is not None and (own != lengths).any():
                row = int((own != lengths).argmax())
                raise ValueError(
                    f"column {field.name!r} of {path} must have an entry for each event: got {own[row]} entries for "
                    f"{lengths[row]} events in row {row}; prepare it again"
                )
            lengths, array = own, array.flatten()
        columns[field.name] = array.to_numpy(zero_copy_only=False)
    assert lengths is not None
    _check(columns, lengths, spec, path)
    # copies, because Arrow's memory cannot be written to, which compiled loops insist on
    kinds = {field.name: _element(field.type).to_pandas_dtype() for field in schema}
    return {"starts": lengths, **{name: np.array(values, kinds[name]) for name, values in columns.items()}}


def _check(columns: Mapping[str, NDArray[Any]], lengths: Ints, spec: DatasetSpec, path: str) -> None:
    limits = {feature.name: (0, feature.ids) for feature in (*spec.sparse, *spec.marks) if feature.name in columns}
    limits[ACTION] = (1, 1 + len(history_of(spec).actions))
    for name, (least, end) in limits.items():
        wrong = (columns[name] < least) | (columns[name] >= end)
        if wrong.any():
            raise ValueError(
                f"column {name!r} of {path} must hold ids in [{least}, {end}): got {columns[name][wrong.argmax()]}; "
                "prepare the data again or correct the spec"
            )
    times, ends = columns[TIME], lengths.cumsum()
    descends = times[1:] < times[:-1]
    descends[ends[(ends > 0) & (ends < len(times))] - 1] = False  # from one user to the next
    if descends.any():
        place = int(descends.argmax())
        raise ValueError(
            f"column {TIME!r} of {path} must ascend within a user: got {times[place + 1]} after {times[place]}; sort "
            "the events of each user"
        )


def _chunk(table: pa.Table, name: str) -> Any:
    column = table.column(name)
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def _alike(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether both are integers, or lists of them."""
    lists = [pa.types.is_list(kind) or pa.types.is_large_list(kind) for kind in (found, wanted)]
    return lists[0] == lists[1] and bool(pa.types.is_integer(_element(found)))


def _element(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
