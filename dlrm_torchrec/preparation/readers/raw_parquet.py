"""Reads raw rows of Parquet files with any columns, by a ``DatasetSpec``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.preparation.readers.columns import Columns
from dlrm_torchrec.preparation.readers.rows import Checks, Rejected, Rows
from dlrm_torchrec.preparation.readers.spans import Span, broken_parquet, open_parquet


@dataclass(frozen=True, kw_only=True)
class ParquetReader:
    """Reads the wanted columns, ``chunk_rows`` at a time; a row's number is its 1-based position in the file."""

    columns: Columns
    chunk_rows: int = 65_536

    @property
    def labelled(self) -> bool:
        return self.columns.labelled

    def __call__(self, path: str, span: Span | None = None) -> Iterator[Rows]:
        with g_pathmgr.open(path, "rb") as file:
            parquet = open_parquet(path, file)
            self.columns.check(path, parquet.schema_arrow.names)
            groups = range(span.start, span.stop) if span else range(parquet.num_row_groups)
            number = span.first if span else 1
            row_bytes = file.seek(0, 2) / max(1, parquet.metadata.num_rows)
            try:
                for batch in parquet.iter_batches(
                    self.chunk_rows, row_groups=groups, columns=self.columns.names, use_threads=False
                ):
                    yield replace(self._rows(batch, number), raw_bytes=int(row_bytes * batch.num_rows))
                    number += batch.num_rows
            except (pa.ArrowException, OSError) as error:
                raise broken_parquet(path, error) from error

    def _rows(self, batch: pa.RecordBatch, first: int) -> Rows:
        checks = Checks(batch.num_rows)
        numbers = np.arange(first, first + batch.num_rows)
        rows = self.columns.rows(numbers, batch.column, checks)
        rejected = tuple(
            Rejected(first + i, reason, json.dumps(batch.slice(i, 1).to_pylist()[0], default=str).encode())
            for i, reason in checks.bad()
        )
        return rows.select(checks.good, rejected=rejected)
