"""Windows of time of one prepared folder, whose files keep a column of times beside those of the spec."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from iopath.common.file_io import g_pathmgr
from numpy.typing import NDArray

from dlrm_torchrec.datasets.prepared.manifest import Manifest
from dlrm_torchrec.datasets.prepared.parquet import Rows
from dlrm_torchrec.datasets.prepared.remote import random_access
from dlrm_torchrec.datasets.windows.window import Window, check_only_training_rows, digest_of, open_prepared
from dlrm_torchrec.schema import DatasetSpec

DAY_MICROSECONDS = 86_400_000_000

Part = tuple[str, int, str | None, Rows | None, int]  # place, row group, SHA-256, rows in it (None: all), their number


def time_windows(folder: str, column: str, microseconds: int) -> tuple[DatasetSpec, list[Window]]:
    """The spec of a prepared folder, and a window for each span of time that has rows, the earliest first.

    Window k has the rows whose time is in [k, k + 1) x ``microseconds`` since 1970. A row group whose statistics lie in
    one window is not read for this, and of the others just the ``column`` is. The numbers of chosen rows take 8 bytes
    each, where a row group has rows of several windows. Raises ValueError when the column is missing, holds no times,
    or has no value in a row.
    """
    manifest = Manifest.load(folder)
    check_only_training_rows(manifest, folder)
    parts: dict[int, list[Part]] = defaultdict(list)
    for file in manifest.splits["train"].files:
        place = file.location(folder)
        for group, number, rows, count in _cut(place, column, microseconds):
            parts[number].append((place, group, file.sha256, rows, count))
    return manifest.spec, [
        Window(
            name=name_of(number * microseconds),
            day=number * microseconds / DAY_MICROSECONDS,
            rows=sum(count for *_, count in parts[number]),
            digest=_digest(number, parts[number]),
            folder=folder,
            until=iso((number + 1) * microseconds),
            files=tuple(dict.fromkeys((place, checksum) for place, _, checksum, _, _ in parts[number])),
            open=partial(
                open_prepared, folder, selection={(place, group): rows for place, group, _, rows, _ in parts[number]}
            ),
        )
        for number in sorted(parts)
    ]


def _cut(place: str, column: str, microseconds: int) -> Iterator[tuple[int, int, Rows | None, int]]:
    """Row group, window, the rows of the row group in that window (None for all), and their number."""
    with g_pathmgr.open(random_access(place), "rb") as raw:
        file = pq.ParquetFile(raw)
        index = _column(file, place, column)
        for group in range(file.num_row_groups):
            known = file.metadata.row_group(group).column(index).statistics
            ends: list[Any] = []
            if known is not None and known.has_min_max and known.null_count == 0:
                kind = file.schema_arrow.field(column).type
                ends = [_microseconds(pa.array([end], kind)) // microseconds for end in (known.min, known.max)]
            if ends and ends[0][0] == ends[1][0]:
                yield group, int(ends[0][0]), None, file.metadata.row_group(group).num_rows
                continue
            times = file.read_row_group(group, columns=[column], use_threads=False)[column]
            if times.null_count:
                raise ValueError(
                    f"times {column!r} of {place} must all be known: got {times.null_count} rows without one; prepare "
                    "the data without them"
                )
            numbers = _microseconds(times.combine_chunks()) // microseconds
            for number in np.unique(numbers).tolist():
                rows = np.flatnonzero(numbers == number)
                yield group, number, None if len(rows) == len(numbers) else rows, len(rows)


def _column(file: pq.ParquetFile, place: str, column: str) -> int:
    """The number of the column of times; ValueError unless it holds times."""
    names = file.schema_arrow.names
    kind = file.schema_arrow.field(column).type if column in names else None
    if kind is None or not (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        found = f"no such column among {names}" if kind is None else f"{kind}"
        raise ValueError(
            f"column {column!r} of {place} must hold times, as timestamps or dates: got {found}; prepare the data with "
            f"--keep_time {column}"
        )
    return [file.metadata.schema.column(i).path for i in range(len(file.metadata.schema))].index(column)


def _microseconds(times: Any) -> NDArray[np.int64]:
    """Microseconds since 1970, rounded down: (n,)."""
    found: NDArray[np.int64] = times.to_numpy(zero_copy_only=False).astype("datetime64[us]").astype(np.int64)
    return found


def iso(microseconds: int) -> str:
    """The time so long after the beginning of 1970."""
    return datetime.fromtimestamp(microseconds // 1_000_000, UTC).isoformat()


def name_of(microseconds: int) -> str:
    """The time as people write it, without the parts that are 0: 2026-01-31, 2026-01-31T06, 2026-01-31T06:30."""
    time = datetime.fromtimestamp(microseconds // 1_000_000, UTC)
    for form, step in (("%Y-%m-%d", 86_400), ("%Y-%m-%dT%H", 3_600), ("%Y-%m-%dT%H:%M", 60)):
        if microseconds // 1_000_000 % step == 0:
            return time.strftime(form)
    return time.strftime("%Y-%m-%dT%H:%M:%S")


def _digest(number: int, parts: list[Part]) -> str:
    """Equal for the same rows of the same files in the same window, wherever the files lie."""
    return digest_of(
        [number]
        + [
            (group, checksum, count, None if rows is None else sha256(rows.tobytes()).hexdigest())
            for _, group, checksum, rows, count in parts
        ]
    )
