"""Raw rows of Criteo's TSV: label, 13 integers and 26 eight-digit hexadecimal values; an empty field is missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dlrm_torchrec.datasets.criteo import DENSE_NAMES, LABEL, SPARSE_NAMES
from dlrm_torchrec.datasets.fields import parse_hex32, parse_int64, split_fields
from dlrm_torchrec.datasets.lines import BLOCK_BYTES, MAX_LINE_BYTES, Lines, read_lines
from dlrm_torchrec.datasets.rows import Checks, Mask, Rows


@dataclass(frozen=True, kw_only=True)
class CriteoReader:
    """Reads plain or gzip Criteo files; a category is its hexadecimal value as int64, modulo ``max_ind_range``."""

    labelled: bool = True  # files such as Kaggle's test.txt have 39 columns instead of 40
    max_ind_range: int = 1 << 32
    block_bytes: int = BLOCK_BYTES
    max_line_bytes: int = MAX_LINE_BYTES

    def __call__(self, path: str) -> Iterator[Rows]:
        for lines in read_lines(path, self.block_bytes, self.max_line_bytes):
            yield self._rows(lines)

    def _rows(self, block: Lines) -> Rows:
        lines = block.select(block.starts < block.ends)
        checks = Checks(len(lines))
        lines.check(checks, self.max_line_bytes)
        columns = self.labelled + len(DENSE_NAMES) + len(SPARSE_NAMES)
        fields, miscounted = split_fields(lines, "\t", columns)
        checks.reject(miscounted, f"not {columns} columns")

        label = np.zeros(len(lines), np.float32)
        if self.labelled:
            first, length = fields.data[fields.starts[:, 0]], fields.ends[:, 0] - fields.starts[:, 0]
            checks.reject((length != 1) | ((first != ord("0")) & (first != ord("1"))), f"{LABEL} is not 0 or 1")
            label[first == ord("1")] = 1
        dense, malformed = parse_int64(fields.columns(self.labelled, columns - len(SPARSE_NAMES)))
        _reject(checks, malformed, DENSE_NAMES, "an int64")
        sparse, missing, malformed = parse_hex32(fields.columns(columns - len(SPARSE_NAMES), columns))
        _reject(checks, malformed, SPARSE_NAMES, "eight hexadecimal digits")
        sparse %= self.max_ind_range

        rows = Rows(
            numbers=lines.numbers,
            label=label,
            dense=dense,
            sparse=tuple(pa.array(sparse[:, i], mask=missing[:, i]) for i in range(len(SPARSE_NAMES))),
        )
        return rows.select(
            checks.good,
            rejected=lines.rejected(checks, self.max_line_bytes),
            blanks=len(block) - len(lines),
            damage=block.damage,
        )


def _reject(checks: Checks, malformed: Mask, names: tuple[str, ...], rule: str) -> None:
    """Reject rows by the columns of ``malformed`` (B, columns), in their order."""
    for i in np.flatnonzero(malformed.any(axis=0)):
        checks.reject(malformed[:, i], f"{names[i]} is not {rule}")
