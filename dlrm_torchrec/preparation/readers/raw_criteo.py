"""Reads Criteo's TSV: label, 13 integers and 26 eight-digit hexadecimal values; an empty field is a missing value.

A compiled loop reads well-formed lines. The other lines are read again, carefully and field by field, to find out
whether each is well-formed and, if not, why.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dlrm_torchrec.datasets.criteo import DENSE_NAMES, LABEL, SPARSE_NAMES
from dlrm_torchrec.preparation.readers.criteo_kernel import parse_lines, words_of
from dlrm_torchrec.preparation.readers.lines import BLOCK_BYTES, MAX_LINE_BYTES, Lines, read_lines
from dlrm_torchrec.preparation.readers.rows import Checks, Ints, Mask, Rejected, Rows
from dlrm_torchrec.preparation.readers.spans import Span

_INTEGER, _HEX = re.compile(rb"(-?[0-9]{1,19})?"), re.compile(rb"([0-9a-fA-F]{8})?")


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
        """The values of lines, one after the other, and why some lines are malformed."""
        checks, count = Checks(len(lines)), len(lines)
        lines.check(checks, self.max_line_bytes)
        label = np.zeros(count, np.float32)
        dense = np.full((len(DENSE_NAMES), count), np.nan)
        sparse, missing = np.zeros((len(SPARSE_NAMES), count), np.int64), np.ones((len(SPARSE_NAMES), count), np.bool_)
        read = [self._read(lines.text(i)) for i in range(count)]
        for reason in dict.fromkeys(reason for reason, _ in read if reason):
            checks.reject(np.array([each == reason for each, _ in read]), reason)
        for i in np.flatnonzero(checks.good):
            _, values = read[i]
            label[i] = int(values[0])
            for j, value in enumerate(values[1:]):
                if value and j < len(DENSE_NAMES):
                    dense[j, i] = float(int(value))
                elif value:
                    sparse[j - len(DENSE_NAMES), i] = int(value, 16) % self.max_ind_range
                    missing[j - len(DENSE_NAMES), i] = False
        return Values(label, dense, sparse, missing, checks.good), checks

    def _read(self, line: bytes) -> tuple[str, list[bytes]]:
        """Why a line is malformed, and the texts of its label, integers and categories."""
        fields, names = line.split(b"\t"), (*DENSE_NAMES, *SPARSE_NAMES)
        if len(fields) != self.labelled + len(names):
            return f"not {self.labelled + len(names)} columns", fields
        fields = fields if self.labelled else [b"0", *fields]
        if fields[0] not in (b"0", b"1"):
            return f"{LABEL} is not 0 or 1", fields
        for name, value in zip(names, fields[1:], strict=True):
            if name in DENSE_NAMES and not (_INTEGER.fullmatch(value) and -(2**63) <= int(value or 0) < 2**63):
                return f"{name} is not an int64", fields
            if name in SPARSE_NAMES and not _HEX.fullmatch(value):
                return f"{name} is not eight hexadecimal digits", fields
        return "", fields

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
