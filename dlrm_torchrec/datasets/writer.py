"""Prepared Parquet files with full row groups, whatever the size of the pieces they are given."""

from __future__ import annotations

import hashlib
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.datasets.manifest import DataFile, Split, join

ROW_GROUP_ROWS = 65_536
FILE_ROW_GROUPS = 64


class SplitWriter:
    """Writes one split as ``<split>/part-<n>.parquet``; every row group but the last has ``row_group_rows`` rows."""

    def __init__(self, folder: str, split: str, schema: pa.Schema, row_group_rows: int = ROW_GROUP_ROWS) -> None:
        self._folder, self._split, self._schema = folder, split, schema
        self._row_group_rows = row_group_rows
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0
        self._part: _Part | None = None
        self._files: list[DataFile] = []
        g_pathmgr.mkdirs(join(folder, split))

    def write(self, table: pa.Table) -> None:
        self._waiting.append(table)
        self._waiting_rows += table.num_rows
        if self._waiting_rows >= self._row_group_rows:
            rows = pa.concat_tables(self._waiting)
            whole = rows.num_rows - rows.num_rows % self._row_group_rows
            for start in range(0, whole, self._row_group_rows):
                self._write_group(rows.slice(start, self._row_group_rows))
            self._waiting, self._waiting_rows = [rows.slice(whole)], rows.num_rows - whole

    def close(self) -> Split:
        """Write what is waiting; the files written."""
        if self._waiting_rows:
            self._write_group(pa.concat_tables(self._waiting))
        self._close_part()
        return Split(files=tuple(self._files))

    def _write_group(self, rows: pa.Table) -> None:
        if self._part is None:
            name = f"{self._split}/part-{len(self._files):05d}.parquet"
            self._part = _Part(self._folder, name, self._schema)
        self._part.write(rows)
        if self._part.row_groups == FILE_ROW_GROUPS:
            self._close_part()

    def _close_part(self) -> None:
        if self._part is not None:
            self._files.append(self._part.close())
            self._part = None


class _Part:
    """One Parquet file, checksummed while it is written."""

    def __init__(self, folder: str, name: str, schema: pa.Schema) -> None:
        self._name, self._rows, self.row_groups = name, 0, 0
        self._file = _HashedFile(g_pathmgr.open(join(folder, name), "wb"))
        self._writer = pq.ParquetWriter(self._file, schema, compression="lz4", use_dictionary=False)

    def write(self, rows: pa.Table) -> None:
        self._writer.write_table(rows, row_group_size=rows.num_rows)
        self._rows += rows.num_rows
        self.row_groups += 1

    def close(self) -> DataFile:
        self._writer.close()
        self._file.close()
        return DataFile(path=self._name, rows=self._rows, sha256=self._file.sha256.hexdigest())


class _HashedFile:
    """A binary file open for writing that knows the SHA-256 of what was written."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.closed = False

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return int(self._file.write(data))

    def tell(self) -> int:
        return int(self._file.tell())

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()
        self.closed = True
