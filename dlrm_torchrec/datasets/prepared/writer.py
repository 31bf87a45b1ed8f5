"""Writes prepared Parquet files with full row groups from pieces of any size."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

from dlrm_torchrec.datasets.prepared.files import NewFile, Stored

ROW_GROUP_ROWS = 65_536
FILE_ROW_GROUPS = 64


class SplitWriter:
    """Writes the rows of a unit that go to one split as ``<split>/part-<unit>-<n>.parquet``.

    Every row group except the last has ``row_group_rows`` rows, and tells the ends of the columns ``bounded``. An error
    leaves no incomplete file.
    """

    def __init__(
        self,
        folder: str,
        split: str,
        *,
        unit: int,
        schema: pa.Schema,
        row_group_rows: int,
        bounded: Sequence[str] = (),
    ) -> None:
        self._bounded = bounded
        self._folder, self._prefix, self._schema = folder, f"{split}/part-{unit:05d}", schema
        self._row_group_rows = row_group_rows
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0
        self._part: _Part | None = None
        self.files: list[tuple[Stored, int]] = []  # the files written so far, with their rows

    def write(self, table: pa.Table) -> None:
        self._waiting.append(table)
        self._waiting_rows += table.num_rows
        if self._waiting_rows >= self._row_group_rows:
            rows = pa.concat_tables(self._waiting)
            whole = rows.num_rows - rows.num_rows % self._row_group_rows
            for start in range(0, whole, self._row_group_rows):
                self._write_group(rows.slice(start, self._row_group_rows))
            self._waiting, self._waiting_rows = [rows.slice(whole)], rows.num_rows - whole

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                if self._waiting_rows:
                    self._write_group(pa.concat_tables(self._waiting))
                self._close_part()
        finally:
            if self._part is not None:
                self._part.discard()

    def _write_group(self, rows: pa.Table) -> None:
        if self._part is None:
            self._part = _Part(
                self._folder, f"{self._prefix}-{len(self.files):03d}.parquet", self._schema, self._bounded
            )
        self._part.write(rows)
        if self._part.row_groups == FILE_ROW_GROUPS:
            self._close_part()

    def _close_part(self) -> None:
        if self._part is not None:
            self.files.append(self._part.close())
            self._part = None


class _Part:
    """One Parquet file."""

    def __init__(self, folder: str, name: str, schema: pa.Schema, bounded: Sequence[str]) -> None:
        self._rows, self.row_groups = 0, 0
        self.file = NewFile(folder, name)
        try:
            # BYTE_STREAM_SPLIT stores all first bytes of a column, then all second bytes, and so on. That puts zeros
            # next to zeros and noise next to noise, so lz4 takes half the time for the same size.
            self._writer = pq.ParquetWriter(
                self.file,
                schema,
                compression="lz4",
                use_dictionary=False,
                column_encoding="BYTE_STREAM_SPLIT",
                write_statistics=list(bounded),
            )
        except BaseException:
            self.file.discard()
            raise

    def write(self, rows: pa.Table) -> None:
        # In one piece, because pages end where pieces end, and pieces depend on the blocks that were read.
        self._writer.write_table(rows.combine_chunks(), row_group_size=rows.num_rows)
        self._rows += rows.num_rows
        self.row_groups += 1

    def discard(self) -> None:
        with suppress(OSError):  # a full disk has no room for the footer
            self._writer.close()
        self.file.discard()

    def close(self) -> tuple[Stored, int]:
        self._writer.close()
        self.file.close()
        return self.file.stored, self._rows
