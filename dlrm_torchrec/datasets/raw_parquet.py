"""Raw rows of Parquet files with any columns, read through a ``DatasetSpec``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.datasets.columns import Columns
from dlrm_torchrec.datasets.rows import Checks, Rejected, Rows


@dataclass(frozen=True, kw_only=True)
class ParquetReader:
    """Reads the wanted columns, ``chunk_rows`` at a time; a row's number is its 1-based position in the file."""

    columns: Columns
    chunk_rows: int = 65_536

    @property
    def labelled(self) -> bool:
        return self.columns.labelled

    def __call__(self, path: str) -> Iterator[Rows]:
        with g_pathmgr.open(path, "rb") as file:
            try:
                parquet = pq.ParquetFile(file)
                self.columns.check(path, parquet.schema_arrow.names)
                first = 1
                for batch in parquet.iter_batches(self.chunk_rows, columns=self.columns.names, use_threads=False):
                    yield self._rows(batch, first)
                    first += batch.num_rows
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"{path} must be a whole Parquet file: got {error}; fetch it again") from error

    def _rows(self, batch: pa.RecordBatch, first: int) -> Rows:
        checks = Checks(batch.num_rows)
        numbers = np.arange(first, first + batch.num_rows)
        rows = self.columns.rows(numbers, batch.column, checks)
        rejected = tuple(
            Rejected(first + i, reason, json.dumps(batch.slice(i, 1).to_pylist()[0], default=str).encode())
            for i, reason in checks.bad()
        )
        return rows.select(checks.good, rejected=rejected)
