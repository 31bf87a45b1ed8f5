"""Reads Criteo's TSV: label, 13 integers and 26 eight-digit hexadecimal values; an empty field is a missing value.

A compiled loop reads well-formed lines. The other lines are read again, carefully and field by field, to find out
whether each is well-formed and, if not, why.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dlrm_torchrec.datasets.criteo import DENSE_NAMES, LABEL, SPARSE_NAMES
from dlrm_torchrec.preparation.readers.criteo_kernel import parse_lines, words_of
from dlrm_torchrec.preparation.readers.fields import parse_hex32, parse_int64, split_fields
from dlrm_torchrec.preparation.readers.lines import BLOCK_BYTES, MAX_LINE_BYTES, Lines, read_lines
from dlrm_torchrec.preparation.readers.rows import Checks, Ints, Mask, Rejected, Rows
from dlrm_torchrec.preparation.readers.spans import Span


class Values(NamedTuple):
    """The values of B lines; the values of a line that is not ``good`` have no meaning."""

    label: npt.NDArray[np.float32]  # (B,)
    dense: npt.NDArray[np.float64]  # (13, B); NaN is missing
    sparse: Ints  # (26, B)
    missing: Mask  # (26, B)
    good: Mask  # (B,)


@dataclass(frozen=True, kw_only=True)
class CriteoReader:
    """Reads plain or gzip Criteo files; a category becomes its hexadecimal value as int64, modulo ``max_ind_range``."""

    labelled: bool = True  # files such as Kaggle's test.txt have 39 columns instead of 40
    max_ind_range: int = 1 << 32
    block_bytes: int = BLOCK_BYTES
    max_line_bytes: int = MAX_LINE_BYTES

    def __call__(self, path: str, span: Span | None = None) -> Iterator[Rows]:
        for lines in read_lines(path, span, block_bytes=self.block_bytes, max_line_bytes=self.max_line_bytes):
            yield self._rows(lines)

    def _rows(self, block: Lines) -> Rows:
        lines = block.select(block.starts < block.ends)
        values, rejected = self.quickly(lines), tuple[Rejected, ...]()
        doubtful = ~values.good
        if doubtful.any():
            rejected = self._correct(values, lines.select(doubtful).copy(), doubtful)
        rows = Rows(
            numbers=lines.numbers,
            label=values.label,
            dense=values.dense.T,
            sparse=_nullable(values.sparse, values.missing),
        )
        return rows.select(
            values.good,
            rejected=rejected,
            blanks=len(block) - len(lines),
            raw_bytes=block.raw_bytes,
            damage=block.damage,
        )

    def quickly(self, lines: Lines) -> Values:
        """The values of lines that are certainly well-formed; all other lines are not ``good``."""
        dense, sparse = len(DENSE_NAMES), len(SPARSE_NAMES)
        values = Values(
            label=np.zeros(len(lines), np.float32),
            dense=np.empty((dense, len(lines))),
            sparse=np.empty((sparse, len(lines)), np.int64),
            missing=np.empty((sparse, len(lines)), np.bool_),
            good=np.empty(len(lines), np.bool_),
        )
        data = lines.data
        parse_lines(
            data,
            words_of(data),
            lines.starts,
            lines.ends,
            labelled=self.labelled,
            max_ind_range=self.max_ind_range,
            label=values.label,
            dense=values.dense,
            sparse=values.sparse,
            missing=values.missing,
            good=values.good,
        )
        values.good[lines.ends - lines.starts > self.max_line_bytes] = False
        if lines.damage:
            values.good[:] = False
        return values

    def carefully(self, lines: Lines) -> tuple[Values, Checks]:
        """The values of lines, and why some lines are malformed."""
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
        return Values(label, dense.T, sparse.T % self.max_ind_range, missing.T, checks.good), checks

    def _correct(self, values: Values, lines: Lines, places: Mask) -> tuple[Rejected, ...]:
        """The malformed lines; the values of the other lines are written to ``places`` (B,) of ``values``."""
        careful, checks = self.carefully(lines)
        columns: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = list(zip(values, careful, strict=True))
        for column, correct in columns:
            column[..., places] = correct
        return lines.rejected(checks, self.max_line_bytes)


def _nullable(values: Ints, missing: Mask) -> tuple[Any, ...]:
    """An Arrow array for each row of ``values`` (C, B), null where ``missing`` (C, B) is true, without copies."""
    valid = np.packbits(~missing, axis=1, bitorder="little")
    buffers = ([pa.py_buffer(bits), pa.py_buffer(column)] for bits, column in zip(valid, values, strict=True))
    return tuple(pa.Array.from_buffers(pa.int64(), values.shape[1], pair) for pair in buffers)


def _reject(checks: Checks, malformed: Mask, names: tuple[str, ...], rule: str) -> None:
    """Reject rows by the columns of ``malformed`` (B, columns), column by column."""
    for i in np.flatnonzero(malformed.any(axis=0)):
        checks.reject(malformed[:, i], f"{names[i]} is not {rule}")
