"""Vocabularies: raw values counted over the training rows, then turned into ids by frequency."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from iopath.common.file_io import g_pathmgr

from dlrm_torchrec.datasets.rows import Ints

MISSING, UNSEEN, FIRST = 0, 1, 2


class Vocabulary:
    """Ids of raw values: 0 missing, 1 unseen, then ``values`` (distinct, without null) from 2 in their order."""

    def __init__(self, values: Any) -> None:
        self.values = values
        if pa.types.is_integer(values.type):
            numbers = values.to_numpy()
            self._order = np.argsort(numbers)
            self._sorted = numbers[self._order]

    @property
    def rows(self) -> int:
        return FIRST + len(self.values)

    def encode(self, values: Any) -> Ints:
        """Ids (N,) of N raw values; ValueError when they are not of the vocabulary's type."""
        if values.type != self.values.type and len(self.values):
            raise ValueError(
                f"a column must have one type in all files: got {values.type} after {self.values.type}; "
                "convert them to one type"
            )
        if pa.types.is_integer(values.type) and len(self.values):
            numbers = values.fill_null(0).to_numpy()
            place = np.searchsorted(self._sorted, numbers).clip(max=len(self._sorted) - 1)
            ids = np.where(self._sorted[place] == numbers, self._order[place] + FIRST, UNSEEN)
        else:
            found = pc.index_in(values, value_set=self.values.cast(values.type))
            ids = found.cast(pa.int64()).fill_null(UNSEEN - FIRST).to_numpy() + FIRST
        return np.where(values.is_null().to_numpy(zero_copy_only=False), MISSING, ids)

    def save(self, path: str) -> None:
        """Write the values in id order as the Parquet column ``value``."""
        with g_pathmgr.open(path, "wb") as file:
            pq.write_table(pa.table({"value": self.values}), file)


class VocabularyCounter:
    """Counts raw values piece by piece; memory is that of the distinct values."""

    def __init__(self) -> None:
        self._counted: Any = None  # table of distinct values and counts
        self._pending: list[Any] = []  # such tables of single pieces
        self._pending_rows = 0

    def add(self, values: Any) -> None:
        """Count N raw values; nulls are left out."""
        counts = pc.value_counts(values.drop_null())
        self._pending.append(pa.table({"value": counts.field("values"), "count": counts.field("counts")}))
        self._pending_rows += len(counts)
        # merging only when the pieces outgrow the total keeps the work at O(n log n) over any number of pieces
        if self._pending_rows > max(len(self._counted) if self._counted else 0, 1 << 16):
            self._merge()

    def finish(self, min_count: int) -> Vocabulary:
        """The values seen at least ``min_count`` times, by descending count, then by value."""
        self._merge()
        if self._counted is None:
            return Vocabulary(pa.array([], pa.string()))
        often = self._counted.filter(pc.field("count") >= min_count)
        ordered = often.sort_by([("count", "descending"), ("value", "ascending")])
        return Vocabulary(ordered["value"].combine_chunks())

    def _merge(self) -> None:
        pieces = [piece for piece in [self._counted, *self._pending] if piece is not None]
        self._pending, self._pending_rows = [], 0
        if pieces:
            if len({piece.schema for piece in pieces}) > 1:
                types = sorted({str(piece.schema.field("value").type) for piece in pieces})
                raise ValueError(
                    f"a column must have one type in all files: got {types}; convert the files to one type"
                )
            merged = pa.concat_tables(pieces).group_by("value").aggregate([("count", "sum")])
            self._counted = merged.select(["value", "count_sum"]).rename_columns(["value", "count"])
