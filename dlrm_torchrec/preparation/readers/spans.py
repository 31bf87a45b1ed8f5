"""Cuts raw files into spans, which any process can read alone and in any order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq
from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.preparation.readers.streams import PARQUET_MAGIC, is_divisible

_CHUNK_BYTES = 1 << 20
_MIN_BYTES, _MAX_BYTES = 16 << 20, 256 << 20
_SPANS = 32  # per data set: enough to share evenly, few enough for full row groups


@dataclass(frozen=True, kw_only=True)
class Span:
    """A part of a raw file: whole lines of plain text, a whole compressed file, or row groups of Parquet."""

    start: int  # first byte, or first row group of Parquet
    stop: int
    bytes: int  # of the file
    first: int = 1  # number of its first line, or first row of Parquet
    count: int | None = None  # number of lines or rows; None if not counted yet


def span_bytes(total_bytes: int) -> int:
    """The length of spans for files of ``total_bytes``; it is the same on every machine, so the output is the same."""
    return min(max(total_bytes // _SPANS, _MIN_BYTES), _MAX_BYTES)


def file_bytes(path: str) -> int:
    """Length of a file."""
    with g_pathmgr.open(path, "rb") as file:
        return int(file.seek(0, 2))


def cut(path: str, limit: int) -> list[Span]:
    """The spans of a file in order, each of about ``limit`` bytes; a file without rows has one span.

    Rows of Parquet are counted and numbered; lines of text are not, yet. Raises ValueError when a Parquet file cannot
    be read.
    """
    size = file_bytes(path)
    with g_pathmgr.open(path, "rb") as file:
        head = file.read(8)
        if head.startswith(PARQUET_MAGIC):
            return list(_row_groups(open_parquet(path, file), size, limit))
        starts = [0]
        while is_divisible(head) and starts[-1] + limit < size:
            starts.append(_next_line(file, starts[-1] + limit))
    starts = [start for start in starts if start < size] or [0]
    return [Span(start=start, stop=stop, bytes=stop - start) for start, stop in pairwise([*starts, size])]


def number(spans: Sequence[Span], counts: Sequence[tuple[int, int]], *, quoted: bool = False) -> list[Span]:
    """The spans of a file, numbered by the counts of their lines and quotes.

    With ``quoted``, spans are joined where the border between them has an odd number of quotes before it, because it
    lies within a field.
    """
    joined: list[Span] = []
    lines = quotes = 0
    for span, (more_lines, more_quotes) in zip(spans, counts, strict=True):
        if quoted and quotes % 2:
            last = joined.pop()
            count = (last.count or 0) + more_lines
            joined.append(replace(last, stop=span.stop, bytes=last.bytes + span.bytes, count=count))
        else:
            joined.append(replace(span, first=1 + lines, count=more_lines))
        lines, quotes = lines + more_lines, quotes + more_quotes
    return joined


def open_parquet(path: str, file: IO[bytes]) -> pq.ParquetFile:
    """An open Parquet file. Raises ValueError if it is not Parquet, or only a part of a file."""
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise broken_parquet(path, error) from error


def broken_parquet(path: str, error: Exception) -> ValueError:
    return ValueError(f"{path} must be a complete Parquet file: got {error}; download it again")


def _row_groups(parquet: pq.ParquetFile, size: int, limit: int) -> Iterator[Span]:
    """Sequences of row groups that each take about ``limit`` bytes in memory."""
    metadata = parquet.metadata
    start = first = rows = held = 0
    for group in range(metadata.num_row_groups):
        rows += metadata.row_group(group).num_rows
        held += metadata.row_group(group).total_byte_size
        if held >= limit or group == metadata.num_row_groups - 1:
            share = size * rows // max(1, metadata.num_rows)
            yield Span(start=start, stop=group + 1, bytes=share, first=first + 1, count=rows)
            start, first, rows, held = group + 1, first + rows, 0, 0
    if not metadata.num_row_groups:
        yield Span(start=0, stop=0, bytes=size, count=0)


def _next_line(file: IO[bytes], position: int) -> int:
    """The start of the first line that begins at ``position`` or later; the end of the file if there is none."""
    file.seek(position - 1)
    position -= 1
    while chunk := file.read(_CHUNK_BYTES):
        end = chunk.find(b"\n")
        if end >= 0:
            return position + end + 1
        position += len(chunk)
    return position
